/**
 * Ed25519 (RFC 8032) with a nonce at random in place of the one that follows from key and message: another signature each time, as good as
 * the first. Slow, and for tests only: whoever signs can make any number of encodings of one statement.
 */
import { createHash, type KeyObject, randomBytes } from 'node:crypto'

const P = 2n ** 255n - 19n
const ORDER = 2n ** 252n + 27742317777372353535851937790883648493n
const D = mod(-121665n * inverse(121666n))
const BASE: Point = [
  15112221349535400772501151409588531511454012693041857206046113283949847762202n,
  46316835694926478169428394003475163141307993866256225615783033603165251855960n,
]

type Point = readonly [bigint, bigint]

/** A signature over the message, by the private key. */
export function signAgain(key: KeyObject, message: Uint8Array): Uint8Array {
  const { d = '', x = '' } = key.export({ format: 'jwk' })
  const scalar = Buffer.from(createHash('sha512').update(Buffer.from(d, 'base64url')).digest().subarray(0, 32))
  scalar[0] = (scalar[0] ?? 0) & 248
  scalar[31] = ((scalar[31] ?? 0) & 63) | 64
  const nonce = mod(fromBytes(randomBytes(64)), ORDER)
  const commitment = encode(times(nonce, BASE))
  const hash = createHash('sha512').update(commitment).update(Buffer.from(x, 'base64url')).update(message).digest()
  const answer = mod(nonce + mod(fromBytes(hash), ORDER) * fromBytes(scalar), ORDER)
  return Buffer.concat([commitment, toBytes(answer)])
}

function times(factor: bigint, point: Point): Point {
  let sum: Point = [0n, 1n]
  let doubled = point
  for (let rest = factor; rest > 0n; rest >>= 1n) {
    if ((rest & 1n) === 1n) sum = plus(sum, doubled)
    doubled = plus(doubled, doubled)
  }
  return sum
}

function plus([x1, y1]: Point, [x2, y2]: Point): Point {
  const product = D * mod(mod(x1 * x2) * mod(y1 * y2))
  return [mod((x1 * y2 + x2 * y1) * inverse(1n + product)), mod((y1 * y2 + x1 * x2) * inverse(1n - product))]
}

function inverse(value: bigint): bigint {
  let result = 1n
  let base = mod(value)
  for (let rest = P - 2n; rest > 0n; rest >>= 1n) {
    if ((rest & 1n) === 1n) result = mod(result * base)
    base = mod(base * base)
  }
  return result
}

function mod(value: bigint, by = P): bigint {
  const rest = value % by
  return rest < 0n ? rest + by : rest
}

function encode([x, y]: Point): Uint8Array {
  const bytes = toBytes(y)
  bytes[31] = (bytes[31] ?? 0) | (Number(x & 1n) << 7)
  return bytes
}

function fromBytes(bytes: Uint8Array): bigint {
  return BigInt(`0x${Buffer.from(bytes).reverse().toString('hex')}`)
}

function toBytes(value: bigint): Buffer {
  return Buffer.from(value.toString(16).padStart(64, '0'), 'hex').reverse()
}
