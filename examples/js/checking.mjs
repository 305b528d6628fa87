// Checks what an edgepool network says, with nothing but the network's name and whom one trusts.
// Rules and bytes: docs/protocol/consensus.md, sections 1 to 3.

import { createHash, createPublicKey, verify as verifySignature } from 'node:crypto'
import { concat, decode, encode, raw } from './msgpack.mjs'

const ALPHABET = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
const PEER_PREFIX = '002408011220'
const KEY_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')
const PRECOMMIT = 2

export const sha256 = (...parts) => createHash('sha256').update(concat(parts)).digest()
export const hex = (bytes) => Buffer.from(bytes).toString('hex')
const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0

export function publicKeyOf (peer) {
  let number = 0n
  for (const letter of peer) {
    const digit = ALPHABET.indexOf(letter)
    if (digit < 0) throw new Error(`${peer} is no peer id`)
    number = number * 58n + BigInt(digit)
  }
  const bytes = number.toString(16).padStart(76, '0')
  if (bytes.length !== 76 || !bytes.startsWith(PEER_PREFIX)) throw new Error(`${peer} is no peer id of an Ed25519 key`)
  return Buffer.from(bytes.slice(PEER_PREFIX.length), 'hex')
}

export function signed (domain, statement) {
  return encode([`edgepool/1/${domain}`, ...statement])
}

function holds (peer, domain, statement, signature) {
  const key = createPublicKey({ key: Buffer.concat([KEY_PREFIX, publicKeyOf(peer)]), format: 'der', type: 'spki' })
  return verifySignature(null, signed(domain, statement), key, signature)
}

// --- pools ----------------------------------------------------------------------------------------

export function chainOf (genesis) {
  const [invitation, , acceptances] = genesis
  return hex(sha256(encode([invitation, acceptances.map(([, tip]) => tip)]))).slice(0, 40)
}

export function poolOf (genesis) {
  const [network, name, kind, coordinator, members] = genesis[0]
  return { chain: chainOf(genesis), network, name, kind, coordinator, members }
}

// Throws, naming the condition that failed, unless all who are in a pool have agreed to be.
export function checkGenesis (genesis, network) {
  const [invitation, coordinatorSignature, acceptances] = genesis
  const pool = poolOf(genesis)
  const hash = sha256(raw(invitation))
  expect(pool.network === network, `the pool is of network '${pool.network}'`)
  const everybody = [...pool.members, ...invitation[5]].map(([peer]) => peer)
  expect(new Set(everybody).size === everybody.length, 'a peer stands in the genesis twice')
  expect(acceptances.length === pool.members.length, 'somebody has not accepted')
  expect(holds(pool.coordinator, 'invite', [hash], coordinatorSignature), "the coordinator's signature does not hold")
  acceptances.forEach(([member, tip, signature], place) => {
    expect(member === pool.members[place][0], 'the acceptances are out of order')
    expect(holds(member, 'accept', [hash, tip], signature), `the signature of ${member} does not hold`)
  })
  return pool
}

// --- blocks ---------------------------------------------------------------------------------------

function membersHash (roster) {
  return sha256(encode(['edgepool/1/members', roster]))
}

// Throws unless more than two thirds of the roster have signed this header.
export function checkCertified (header, certificate, pool, roster) {
  const [network, chain, height, , , members] = header
  const [certifiedHeight, round, blockId, signatures] = certificate
  expect(network === pool.network && chain === pool.chain, 'the block is for another chain')
  expect(certifiedHeight === height && same(blockId, sha256(raw(header))), 'the certificate is for another block')
  expect(same(members, membersHash(roster)), 'the block is of another roster')
  expect(signatures.length >= Math.floor(2 * roster.length / 3) + 1, 'fewer than a quorum have signed')
  let before = -1
  for (const [index, signature] of signatures) {
    expect(index > before && index < roster.length, 'somebody signs twice, out of order, or is no member')
    before = index
    const vote = [network, chain, PRECOMMIT, height, round, blockId]
    expect(holds(roster[index][0], 'vote', vote, signature), `the vote of ${roster[index][1]} does not hold`)
  }
  return { height, id: hex(blockId), records: header[9], proposer: header[10], signers: signatures.length }
}

export function sameRoster (header, roster) {
  return same(header[5], membersHash(roster))
}

// Returns the roster to which a handover leads from `roster`; throws unless that roster has certified it.
export function nextRoster ([header, certificate, outgoing, incoming], pool, roster) {
  checkCertified(header, certificate, pool, roster)
  let next
  if (incoming === null) next = roster.filter(([peer]) => peer !== outgoing)
  else if (outgoing === '') next = [...roster, incoming]
  else next = roster.map((member) => (member[0] === outgoing ? incoming : member))
  expect(next.length > 0 && same(header[6], membersHash(next)), 'a handover names another roster')
  return next
}

function rosterAfter (pool, handovers) {
  let roster = pool.members
  let last = 0
  for (const handover of handovers) {
    expect(handover[0][2] > last, 'the handovers are out of order')
    last = handover[0][2]
    roster = nextRoster(handover, pool, roster)
  }
  return { roster, last }
}

// Throws unless `trust` (the bytes of a Trust) is what the state root in a certified header commits to. Of each
// root it says the fingerprint, the certificate (empty if it was never admitted), and when it is trusted no more.
export function checkTrust (trust, rest, header) {
  expect(rest.length === 32 && same(sha256(sha256(trust), rest), header[7]), 'the header says something else of trust')
  const [roots, revoked] = decode(trust)
  return {
    revoked: revoked.map(([peer]) => peer),
    roots: roots.map(([fingerprint, , der, retiredMs]) => ({ fingerprint: hex(fingerprint), der, retiredMs }))
  }
}

// --- proofs ---------------------------------------------------------------------------------------

// Throws unless the record stands on the chain of its genesis; returns the record's body.
export function checkOffer (proof, network, trusted) {
  const [genesis, handovers, header, certificate, record, index, path, adoption] = proof
  const pool = checkGenesis(genesis, network)
  expect(trusted.includes(coordinatorOf(pool, adoption)), "the pool's coordinator is not trusted")
  const [content, signature] = record
  const [itsNetwork, itsChain, author, , , , body] = content
  expect(itsNetwork === network && itsChain === pool.chain, 'the record is for another chain')
  expect(holds(author, 'record', [content], signature), "the author's signature does not hold")
  expect(body[0] === 'offer', 'the record is no data offer')
  const { roster, last } = rosterAfter(pool, handovers)
  expect(header[2] > last, 'the handovers go on beyond the block')
  const block = checkCertified(header, certificate, pool, roster)
  checkPath(record, index, path, header)
  return { pool, block, author, body }
}

// Who stands for a pool: the coordinator of its genesis, or the later key of it that has signed so.
function coordinatorOf (pool, adoption) {
  if (adoption === null) return pool.coordinator
  const [number, former, member, tip, signature] = adoption
  const terms = [pool.network, pool.chain, number, former, member, tip]
  expect(holds(member[0], 'succession', terms, signature), 'the new key has not adopted the pool')
  return member[0]
}

function checkPath (record, index, path, header) {
  let place = index
  let width = header[9]
  expect(place < width, "the record's index is beyond the block's records")
  let hash = sha256(Uint8Array.of(0), raw(record))
  for (const sibling of path) {
    const there = (place ^ 1) < width
    expect(width > 1 && sibling.length === (there ? 32 : 0), "the path has another shape than the block's tree")
    if (there) hash = place % 2 ? sha256(Uint8Array.of(1), sibling, hash) : sha256(Uint8Array.of(1), hash, sibling)
    place >>= 1
    width = (width + 1) >> 1
  }
  expect(width === 1 && same(hash, header[8]), "the path does not lead to the block's root")
}

function expect (condition, otherwise) {
  if (!condition) throw new Error(otherwise)
}
