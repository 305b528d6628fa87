// Lists the pools of an edgepool peer, follows the blocks of one, and finds data whose proof it checks itself.
//
//   node follow.mjs FOLDER ADDRESS COORDINATOR [PART/KIND] [BLOCKS]
//
// FOLDER is a member's, made by 'edgepool init' (role client will do); ADDRESS that of a peer, with /p2p/PEER at its
// end; COORDINATOR the peer id of the coordinator whose pools are believed. Prints one JSON object a line.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkCertified, checkGenesis, checkOffer, hex } from './checking.mjs'
import { Member } from './member.mjs'

const [folder, address, coordinator, key, blocks = '1'] = process.argv.slice(2)
if (coordinator === undefined) {
  console.error('usage: node follow.mjs FOLDER ADDRESS COORDINATOR [PART/KIND] [BLOCKS]')
  process.exit(2)
}
const settings = readFileSync(join(folder, 'edgepool.toml'), 'utf-8')
const network = JSON.parse(settings.match(/^network = (".*")$/m)[1])
const say = (what) => console.log(JSON.stringify(what))

const member = await Member.open(folder, network)
say({ event: 'started', peer: member.peer, network })
say({ event: 'ping', ms: await member.ping(address) })

const questions = await member.converse(address, '/edgepool/query/1')
const [tag, listed] = await questions.ask(['pools'])
if (tag !== 'pool_list') throw new Error(`asked for pools, got ${tag}`)
const pools = listed.map(([genesis, height]) => ({ ...checkGenesis(genesis, network), height }))
for (const pool of pools) {
  const members = pool.members.map(([, name]) => name)
  say({ event: 'pool', name: pool.name, kind: pool.kind, chain: pool.chain, height: pool.height, members })
}

const followed = new Promise((resolve, reject) => {
  let left = Number(blocks)
  if (left === 0 || pools.length === 0) resolve()
  for (const pool of pools) {
    const seen = new Set()
    member.follow(pool.chain, ([kind, header, certificate]) => {
      try {
        if (kind !== 'block') throw new Error(`news of ${kind}`)
        // Whoever joined the pool later is in handovers, which news do not carry: followed is who stands in the genesis.
        const block = checkCertified(header, certificate, pool, pool.members)
        if (seen.has(block.id)) return
        seen.add(block.id)
        say({ event: 'block', pool: pool.name, ...block })
        if (--left === 0) resolve()
      } catch (error) {
        reject(error)
      }
    })
  }
})

if (key !== undefined) {
  const [part, kind] = [key.slice(0, key.lastIndexOf('/')), key.slice(key.lastIndexOf('/') + 1)]
  const [answer, offers] = await questions.ask(['find', [part, kind], 0, 5000])
  if (answer !== 'offers') throw new Error(`no offers: ${offers}`)
  for (const [proof, holder] of offers) {
    const { pool, block, body } = checkOffer(proof, network, [coordinator])
    const [, , version, root, size] = body
    say({ event: 'offer', key, holder: holder[1], pool: pool.name, height: block.height, version, root: hex(root), size })
  }
  if (offers.length === 0) say({ event: 'nothing', key })
}
await questions.close()
say({ event: 'ready' })
await followed
await member.close()
say({ event: 'done' })
process.exit(0)
