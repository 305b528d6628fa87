// The part of MessagePack that edgepool uses: arrays of whole numbers, text, bytes, truth values and nil.
// What is decoded keeps its bytes: `raw(value)` of an array is what a hash or signature over it covers.

const RAW = Symbol('raw')
const text = new TextEncoder()

export function raw (array) {
  return array[RAW]
}

export function decode (bytes) {
  const reader = new Reader(bytes)
  const value = reader.value(0)
  if (reader.at !== bytes.length) throw new Error('bytes are left over')
  return value
}

class Reader {
  constructor (bytes) {
    this.bytes = bytes
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.at = 0
  }

  number (size) {
    const at = this.at
    this.at += size
    if (size === 1) return this.view.getUint8(at)
    if (size === 2) return this.view.getUint16(at)
    if (size === 4) return this.view.getUint32(at)
    const big = this.view.getBigUint64(at)
    if (big > 2n ** 53n) throw new Error('a number beyond 2^53')
    return Number(big)
  }

  taken (size) {
    if (this.at + size > this.bytes.length) throw new Error('bytes are missing')
    this.at += size
    return this.bytes.subarray(this.at - size, this.at)
  }

  text (size) {
    return new TextDecoder('utf-8', { fatal: true }).decode(this.taken(size))
  }

  array (length, start, depth) {
    if (depth > 32) throw new Error('too deep')
    const items = []
    for (let i = 0; i < length; i++) items.push(this.value(depth + 1))
    Object.defineProperty(items, RAW, { value: this.bytes.subarray(start, this.at) })
    return items
  }

  value (depth) {
    const start = this.at
    const kind = this.number(1)
    if (kind < 0x80) return kind
    if (kind >= 0xe0) return kind - 256
    if (kind >= 0x90 && kind < 0xa0) return this.array(kind & 15, start, depth)
    if (kind >= 0xa0 && kind < 0xc0) return this.text(kind & 31)
    switch (kind) {
      case 0xc0: return null
      case 0xc2: return false
      case 0xc3: return true
      case 0xc4: return this.taken(this.number(1))
      case 0xc5: return this.taken(this.number(2))
      case 0xc6: return this.taken(this.number(4))
      case 0xcc: return this.number(1)
      case 0xcd: return this.number(2)
      case 0xce: return this.number(4)
      case 0xcf: return this.number(8)
      case 0xd0: return this.view.getInt8(this.at++)
      case 0xd1: return this.view.getInt16((this.at += 2) - 2)
      case 0xd2: return this.view.getInt32((this.at += 4) - 4)
      case 0xd9: return this.text(this.number(1))
      case 0xda: return this.text(this.number(2))
      case 0xdb: return this.text(this.number(4))
      case 0xdc: return this.array(this.number(2), start, depth)
      case 0xdd: return this.array(this.number(4), start, depth)
      default: throw new Error(`0x${kind.toString(16)} is nothing that edgepool writes`)
    }
  }
}

// Encodes in the shortest form. An array that was decoded goes in byte by byte as it came.
export function encode (value) {
  return concat(pieces(value))
}

export function concat (parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

function pieces (value) {
  if (value === null) return [Uint8Array.of(0xc0)]
  if (typeof value === 'boolean') return [Uint8Array.of(value ? 0xc3 : 0xc2)]
  if (typeof value === 'number') return [whole(value)]
  if (typeof value === 'string') {
    const bytes = text.encode(value)
    return [bytes.length < 32 ? Uint8Array.of(0xa0 | bytes.length) : sized([0xd9, 0xda, 0xdb], bytes.length), bytes]
  }
  if (value instanceof Uint8Array) return [sized([0xc4, 0xc5, 0xc6], value.length), value]
  if (value[RAW] !== undefined) return [value[RAW]]
  const head = value.length < 16 ? Uint8Array.of(0x90 | value.length) : sized([null, 0xdc, 0xdd], value.length)
  return [head, ...value.flatMap(pieces)]
}

function whole (value) {
  if (!Number.isSafeInteger(value)) throw new Error(`${value} is no whole number below 2^53`)
  if (value < 0) {
    if (value >= -32) return Uint8Array.of(value + 256)
    throw new Error('no negative number is sent in a question')
  }
  if (value < 128) return Uint8Array.of(value)
  if (value < 2 ** 32) return sized([0xcc, 0xcd, 0xce], value)
  const bytes = new Uint8Array(9)
  bytes[0] = 0xcf
  new DataView(bytes.buffer).setBigUint64(1, BigInt(value))
  return bytes
}

function sized ([short, middle, long], value) {
  if (value < 256 && short !== null) return Uint8Array.of(short, value)
  if (value < 65536) return Uint8Array.of(middle, value >> 8, value & 255)
  const bytes = new Uint8Array(5)
  bytes[0] = long
  new DataView(bytes.buffer).setUint32(1, value)
  return bytes
}
