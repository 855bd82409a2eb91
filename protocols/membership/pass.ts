/**
 * A pass: by it a stranger is let in by members who carry (../relay/spec.md), to be carried to the one who signed it, and for nothing else.
 * It stands in a token, whose issuer may be where nobody can dial it. See spec.md beside this file.
 */
import { z } from 'zod'
import { WireError } from '../error.ts'
import {
  bytes32,
  encodeStatement,
  type Form,
  isSigned,
  parseStatement,
  type Statement,
  type StatementSigner,
  timeMs,
} from './statement.ts'

/** Two keys, a time, a signature, and what surrounds them. */
export const PASS_BYTES_MAX = 256

const passFields = z.strictObject({ v: z.literal(1), network: bytes32, issuer: bytes32, expires: timeMs })
const PASS: Form<z.infer<typeof passFields>> = {
  domain: 'undernet/pass/1\0',
  schema: passFields,
  bytesMax: PASS_BYTES_MAX,
}

export type PassFields = {
  readonly network: Uint8Array
  /** Raw node key of the member that is to be reached. */
  readonly issuer: Uint8Array
  /** Milliseconds since 1970. */
  readonly expires: number
}
export type Pass = Statement<PassFields>

/** @throws {RangeError} when readers would refuse it: the caller's bug. */
export function encodePass({ network, expires }: Omit<PassFields, 'issuer'>, signer: StatementSigner): Pass {
  return encodeStatement(PASS, { v: 1, network, issuer: signer.publicKey, expires }, signer)
}

/** Reads a pass that its issuer signed. @throws {WireError} `too-large`, `malformed`, `bad-signature` */
export function decodePass(bytes: Uint8Array): Pass {
  const pass = parseStatement(PASS, bytes)
  if (!isSigned(PASS, pass, pass.issuer)) throw new WireError('bad-signature', 'a pass that its issuer did not sign')
  return pass
}
