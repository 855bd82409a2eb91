/** The parsers of what is said of Nix stores that are given out: filters in records, and both sides of `/undernet/paths/1`. */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../protocols/cbor.ts'
import {
  decodePathsAnswer,
  decodePathsRequest,
  encodePathsAnswer,
  encodePathsRequest,
  type PathFacts,
} from '../protocols/paths/exchange.ts'
import { encodeChanges, encodePart, partOfKey, readChanges, readPart } from '../protocols/records/filter.ts'
import type { Random } from './random.ts'
import type { Parser } from './soak-run.ts'

const HASH_PART = '0123456789abcdfghijklmnpqrsvwxyz'
const STORE_PATH = `/nix/store/${HASH_PART}-hello`
const KEY_BYTES = 6

export function pathsParsers(random: Random): Parser[] {
  const key = () => Buffer.from(random.bytes(KEY_BYTES)).readUIntBE(0, KEY_BYTES) * 16
  const parts = [0, 1, 7, 300].map((count) => {
    const keys = Array.from({ length: count }, key)
    return Buffer.from(
      encodeCbor(
        encodePart(
          0,
          2,
          keys.filter((one) => partOfKey(one, 2) === 0),
        ),
      ),
    )
  })
  const changes = [0, 1, 20].map((count) => {
    const prefixes = Array.from({ length: count }, () => Math.floor(key() / 16))
    return Buffer.from(encodeCbor(encodeChanges('k-1:AA', prefixes, prefixes.slice(1))))
  })
  const facts: PathFacts = {
    path: STORE_PATH,
    nar: random.bytes(32),
    sizeBytes: 120,
    references: [`${HASH_PART}-hello`],
    signatures: ['k-1:AA'],
    ca: 'text:sha256:x',
    deriver: `${HASH_PART}-hello.drv`,
  }
  const requests = [1, 64].map((count) => Buffer.from(encodePathsRequest({ paths: Array(count).fill(HASH_PART) })))
  const answers = [[null], [facts], [null, facts, facts]].map((paths) => Buffer.from(encodePathsAnswer({ paths })))
  return [
    {
      name: 'records: filter parts',
      seeds: parts,
      parse: (input) => readPart(decodeCbor(input, z.unknown())).has(key()),
    },
    { name: 'records: filter changes', seeds: changes, parse: (input) => readChanges(decodeCbor(input, z.unknown())) },
    { name: 'paths: requests', seeds: requests, parse: (input) => decodePathsRequest(input) },
    { name: 'paths: answers', seeds: answers, parse: (input) => decodePathsAnswer(input) },
  ]
}
