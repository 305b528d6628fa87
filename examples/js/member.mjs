// A member of an edgepool network over js-libp2p: its folder is one that 'edgepool init' has made.
// Bytes: docs/protocol/libp2p.md.

import { X509Certificate, createPrivateKey, randomBytes, sign, verify as verifySignature } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { concat, decode, encode } from './msgpack.mjs'
import { hex, sha256, signed } from './checking.mjs'

// js-libp2p 3 is written for Node 22.
if (Promise.withResolvers === undefined) {
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new this((yes, no) => { resolve = yes; reject = no })
    return { promise, resolve, reject }
  }
}
const { createLibp2p } = await import('libp2p')

const MAX_ANSWER_BYTES = 4 * 1024 * 1024

export class Member {
  static async open (folder, network) {
    const key = createPrivateKey(readFileSync(join(folder, 'identity/key.pem')))
    const certificate = new X509Certificate(readFileSync(join(folder, 'identity/certificate.pem')))
    const roots = ['identity/authority.pem', 'identity/trusted.pem'].flatMap((name) => certificatesIn(join(folder, name)))
    const { d, x } = key.export({ format: 'jwk' })
    const bytes = Buffer.concat([Buffer.from(d, 'base64url'), Buffer.from(x, 'base64url')])
    const node = await createLibp2p({
      privateKey: privateKeyFromRaw(bytes),
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      services: { identify: identify(), ping: ping(), pubsub: gossipsub({ emitSelf: false }) }
    })
    return new Member(node, key, certificate, roots, network)
  }

  constructor (node, key, certificate, roots, network) {
    Object.assign(this, { node, key, certificate, network, peer: node.peerId.toString() })
    this.revoked = new Set()
    this.roots = new Map(roots.map((root) => [hex(sha256(new Uint8Array(root.raw))), root]))
    this.retiredMs = new Map()
  }

  // Takes in what the members of a main chain have decided: other organisations' roots, and when one goes.
  trust (roots) {
    for (const { fingerprint, der, retiredMs } of roots) {
      if (der.length > 0 && hex(sha256(der)) === fingerprint) this.roots.set(fingerprint, new X509Certificate(der))
      this.retiredMs.set(fingerprint, Math.min(retiredMs, this.retiredMs.get(fingerprint) ?? retiredMs))
    }
  }

  // Says whether a root that is trusted now has issued a certificate, itself.
  isIssued (certificate, nowMs) {
    return [...this.roots].some(([fingerprint, root]) => !(this.retiredMs.get(fingerprint) <= nowMs) &&
      certificate.checkIssued(root) && certificate.verify(root.publicKey))
  }

  // Has nothing to do with a peer from now on: it has been revoked.
  async refuse (peer) {
    this.revoked.add(peer)
    const found = this.node.getPeers().find((one) => one.toString() === peer)
    if (found !== undefined) await this.node.hangUp(found)
  }

  async close () {
    await this.node.stop()
  }

  // edgepool marks the port of its libp2p road with /noise; libp2p itself does without that word.
  static address (text) {
    return multiaddr(text.replace('/noise', ''))
  }

  async ping (address) {
    return await this.node.services.ping.ping(Member.address(address))
  }

  // Opens a stream, proves membership both ways, and returns what asks questions on it.
  async converse (address, protocol) {
    const connection = await this.node.dial(Member.address(address))
    const stream = await connection.newStream(protocol)
    const frames = new Frames(stream)
    const other = connection.remotePeer.toString()
    if (this.revoked.has(other)) {
      await connection.close()
      throw new Error(`${other} has been revoked`)
    }
    const nonce = randomBytes(32)
    frames.send(encode(['hello', nonce]))
    const [tag, theirs] = decode(await frames.next())
    if (tag !== 'hello') throw new Error('no hello')
    const binding = sha256(encode(['edgepool/1/libp2p', protocol, this.peer, other, nonce, theirs]))
    this.checkProof(decode(await frames.next()), binding, other)
    const statement = signed('channel', [this.network, binding, this.peer, other])
    frames.send(encode([new Uint8Array(this.certificate.raw), sign(null, statement, this.key)]))
    let before = Promise.resolve()
    return {
      peer: other,
      // One question is answered before the next is sent.
      ask: (question) => {
        before = before.then(async () => {
          frames.send(encode(question))
          return decode(await frames.next())
        })
        return before
      },
      close: async () => await stream.close()
    }
  }

  checkProof ([der, signature], binding, other) {
    const certificate = new X509Certificate(der)
    const now = new Date()
    if (!this.isIssued(certificate, now.getTime())) {
      throw new Error('its certificate is not of an organisation that is trusted')
    }
    if (now < new Date(certificate.validFrom) || now > new Date(certificate.validTo)) {
      throw new Error('its certificate is not valid now')
    }
    if (!certificate.subjectAltName.startsWith(`URI:spiffe://${encodeURIComponent(this.network)}/`)) {
      throw new Error('its certificate is for another network')
    }
    const { x } = certificate.publicKey.export({ format: 'jwk' })
    const remote = this.node.getPeers().find((peer) => peer.toString() === other)
    if (!Buffer.from(x, 'base64url').equals(Buffer.from(remote.publicKey.raw))) {
      throw new Error('its certificate is for another key')
    }
    const statement = signed('channel', [this.network, binding, other, this.peer])
    if (!verifySignature(null, statement, certificate.publicKey, signature)) {
      throw new Error('it did not sign this channel')
    }
  }

  follow (chain, told) {
    const topic = `/edgepool/events/1/${chain}`
    this.node.services.pubsub.addEventListener('message', ({ detail }) => {
      if (detail.topic === topic && !this.revoked.has(detail.from?.toString())) told(decode(detail.data))
    })
    this.node.services.pubsub.subscribe(topic)
  }
}

// The certificates in a PEM file, none if there is no such file.
function certificatesIn (path) {
  const text = existsSync(path) ? readFileSync(path, 'utf-8') : ''
  const found = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
  return found.map((pem) => new X509Certificate(pem))
}

// A length of 4 bytes, then so many bytes.
class Frames {
  constructor (stream) {
    this.stream = stream
    this.arrived = new Uint8Array()
    this.source = stream[Symbol.asyncIterator]()
  }

  send (body) {
    const head = new Uint8Array(4)
    new DataView(head.buffer).setUint32(0, body.length)
    this.stream.send(concat([head, body]))
  }

  async next () {
    await this.have(4)
    const size = new DataView(this.arrived.buffer, this.arrived.byteOffset).getUint32(0)
    if (size > MAX_ANSWER_BYTES) throw new Error('a frame longer than any answer')
    await this.have(4 + size)
    const body = this.arrived.slice(4, 4 + size)
    this.arrived = this.arrived.slice(4 + size)
    return body
  }

  async have (size) {
    while (this.arrived.length < size) {
      const { value, done } = await this.source.next()
      if (done) throw new Error('the other side has ended the stream')
      this.arrived = concat([this.arrived, value.subarray()])
    }
  }
}
