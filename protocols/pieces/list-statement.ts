/**
 * A piece list, signed: who says so of which blob, and to which network. It proves to anybody who said it, and so, when the list is false,
 * who lied. See spec.md beside this file.
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
  sameBytes,
  timeMs,
} from '../membership/statement.ts'
import { BLOB_BYTES_MAX } from './tree.ts'

/** A signature of 64 bytes, and 230 of fields. */
export const LIST_STATEMENT_BYTES_MAX = 512

const fields = z.strictObject({
  v: z.literal(1),
  network: bytes32,
  digest: bytes32,
  sizeBytes: z.int().min(0).max(BLOB_BYTES_MAX),
  root: bytes32,
  signer: bytes32,
  issued: timeMs,
})
type Fields = z.infer<typeof fields>
/** What it is about. */
export type ListFacts = Pick<Fields, 'network' | 'digest' | 'sizeBytes' | 'root'>

const LIST: Form<Fields> = { domain: 'undernet/list/1\0', schema: fields, bytesMax: LIST_STATEMENT_BYTES_MAX }

export function signList(facts: ListFacts & { issued: number }, signer: StatementSigner): Uint8Array {
  const { network, digest, sizeBytes, root, issued } = facts
  const all = { v: 1 as const, network, digest, sizeBytes, root, signer: signer.publicKey, issued }
  return encodeStatement(LIST, all, signer).bytes
}

/**
 * Reads the statement, and checks that it is signed by whom it names.
 *
 * @throws {WireError} `too-large`, `malformed`, `bad-signature`
 */
export function readList(bytes: Uint8Array): Statement<Fields> {
  const statement = parseStatement(LIST, bytes)
  if (!isSigned(LIST, statement, statement.signer))
    throw new WireError('bad-signature', 'a piece list that is not signed by whom it names')
  return statement
}

export function isAbout(statement: ListFacts, facts: ListFacts): boolean {
  return (
    statement.sizeBytes === facts.sizeBytes &&
    (['network', 'digest', 'root'] as const).every((name) => sameBytes(statement[name], facts[name]))
  )
}
