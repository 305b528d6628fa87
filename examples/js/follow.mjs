// Lists the pools of an edgepool peer, follows the blocks of one, and finds data whose proof it checks itself.
//
//   node follow.mjs FOLDER ADDRESS COORDINATOR [PART/KIND] [BLOCKS]
//
// FOLDER is a member's, made by 'edgepool init' (role client will do); ADDRESS that of a peer, with /p2p/PEER at its
// end, or of several with commas between: the first is asked, all tell news; COORDINATOR the peer id of the coordinator
// whose pools are believed. Prints one JSON object a line. Ends with an error when something does not hold.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkGenesis, checkOffer, hex } from './checking.mjs'
import { Following } from './following.mjs'
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
const [first, ...others] = address.split(',')
say({ event: 'ping', ms: await member.ping(first) })

const questions = await member.converse(first, '/edgepool/query/1')
const [tag, listed] = await questions.ask(['pools'])
if (tag !== 'pool_list') throw new Error(`asked for pools, got ${tag}`)
const followed = listed.map(([genesis]) => new Following(checkGenesis(genesis, network), questions.ask, say))
for (const [place, { pool }] of followed.entries()) {
  const members = pool.members.map(([, name]) => name)
  say({ event: 'pool', name: pool.name, kind: pool.kind, chain: pool.chain, height: listed[place][1], members })
}
for (const following of followed) {
  await following.catchUp()
  await lookAtTrust(following)
}
for (const other of others) {
  // Who has proved to be a member is told the news by it, too.
  try {
    await (await member.converse(other, '/edgepool/query/1')).close()
    say({ event: 'connected', address: other })
  } catch (error) {
    say({ event: 'refused', address: other, why: error.message })
  }
}

// Main chains say whom to trust.
async function lookAtTrust (following) {
  if (following.pool.kind !== 'fixed') return
  const { roots, revoked } = await following.trust()
  member.trust(roots)
  for (const peer of revoked) {
    say({ event: 'revoked', pool: following.pool.name, peer })
    await member.refuse(peer)
    if (peer === questions.peer) throw new Error(`the peer that is asked, ${peer}, has been revoked`)
  }
}

async function seen (following, header, certificate) {
  const block = await following.block(header, certificate)
  say({ event: 'block', pool: following.pool.name, ...block })
  await lookAtTrust(following)
}

const enough = new Promise((resolve, reject) => {
  let left = Number(blocks)
  if (left === 0 || followed.length === 0) resolve()
  for (const following of followed) {
    const heights = new Set()
    let before = Promise.resolve()
    member.follow(following.pool.chain, ([kind, header, certificate]) => {
      if (kind !== 'block' || heights.has(header[2])) return
      // In the order in which they come: a change of the roster is taken in before the next block is looked at.
      before = before.then(async () => {
        if (heights.has(header[2])) return
        await seen(following, header, certificate)
        heights.add(header[2])
        if (--left === 0) resolve()
      }).catch(reject)
    })
  }
})

if (key !== undefined && key !== '') {
  const [part, kind] = [key.slice(0, key.lastIndexOf('/')), key.slice(key.lastIndexOf('/') + 1)]
  const [answer, offers] = await questions.ask(['find', [part, kind], 0, 5000])
  if (answer !== 'offers') throw new Error(`no offers: ${offers}`)
  for (const [proof, holder] of offers) {
    if (member.revoked.has(holder[0])) continue
    const { pool, block, body } = checkOffer(proof, network, [coordinator])
    const [, , version, root, size] = body
    say({ event: 'offer', key, holder: holder[1], pool: pool.name, height: block.height, version, root: hex(root), size })
  }
  if (offers.length === 0) say({ event: 'nothing', key })
}
say({ event: 'ready' })
await enough
await questions.close()
await member.close()
say({ event: 'done' })
process.exit(0)
