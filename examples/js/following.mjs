// Follows one pool: who votes at which height, and whom its members have revoked, each change with its proof.
// What a peer answers is believed for the members' signatures in it, never for who gives it.

import { checkCertified, checkTrust, nextRoster, sameRoster } from './checking.mjs'

export class Following {
  // `pool` is what checkGenesis has returned; `ask` asks a peer a question and returns its answer.
  constructor (pool, ask, told = () => {}) {
    Object.assign(this, { pool, ask, told })
    this.rosters = [{ from: 1, roster: pool.members }]
    this.revoked = new Set()
    this.highest = 0
  }

  rosterAt (height) {
    return this.rosters.findLast(({ from }) => from <= height).roster
  }

  // Takes in all handovers that the peer knows beyond those that are known here.
  async catchUp () {
    while (true) {
      const last = this.rosters.at(-1).from - 1
      const [tag, handovers] = await this.ask(['handovers', this.pool.chain, last])
      if (tag !== 'handover_list') throw new Error(`asked for handovers, got ${tag}: ${handovers}`)
      if (handovers.length === 0) return
      for (const handover of handovers) {
        const { from, roster } = this.rosters.at(-1)
        if (handover[0][2] < from) throw new Error('the handovers are out of order')
        const next = { from: handover[0][2] + 1, roster: nextRoster(handover, this.pool, roster) }
        this.rosters.push(next)
        this.told({ event: 'roster', pool: this.pool.name, from: next.from, members: next.roster.map(([, name]) => name) })
      }
    }
  }

  // Throws unless the block stands by the roster of its height, whom it asks for if it does not know it.
  async block (header, certificate) {
    if (!sameRoster(header, this.rosterAt(header[2]))) await this.catchUp()
    const block = checkCertified(header, certificate, this.pool, this.rosterAt(header[2]))
    this.highest = Math.max(this.highest, block.height)
    return block
  }

  // Returns the roots that the members have decided on, and the peer ids that have been revoked since the last time.
  async trust () {
    const [tag, trust, rest, header, certificate] = await this.ask(['trust', this.pool.chain])
    if (tag === 'no') return { roots: [], revoked: [] }
    if (tag !== 'trusted') throw new Error(`asked for trust, got ${tag}`)
    if (header[2] < this.highest) throw new Error('the peer shows an older state than it has told of')
    await this.block(header, certificate)
    const decided = checkTrust(trust, rest, header)
    const fresh = decided.revoked.filter((peer) => !this.revoked.has(peer))
    for (const peer of fresh) this.revoked.add(peer)
    return { roots: decided.roots, revoked: fresh }
  }
}
