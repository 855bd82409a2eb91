/**
 * What makes a publisher a member of a closed network: the body of a record of kind `member`, whose name is always `self`. See spec.md
 * beside this file; the chain is that of ../membership/spec.md, judged for the record's publisher.
 */
import { z } from 'zod'
import { WireError } from '../error.ts'
import { CHAIN_BYTES_MAX, decodeChain, type JudgedBy, judgeChain, type Member } from '../membership/certificate.ts'
import type { SignedRecord } from './record.ts'

export const MEMBER_KIND = 'member'
export const MEMBER_NAME = 'self'

/** Unknown fields are ignored: later versions add some. */
export const memberBody = z.object({
  v: z.int().min(1),
  /** Its certificate, endorsed; not judged here. */
  chain: z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.byteLength <= CHAIN_BYTES_MAX,
    'not the bytes of a chain',
  ),
  /** Whether it answers for the network's issuers: who needs a certificate renewed asks it. */
  issues: z.boolean(),
})
export type MemberBody = z.infer<typeof memberBody>

/** Whether this is the key of a member record. */
export function isMemberKey({ kind, name }: { kind: string; name: string }): boolean {
  return kind === MEMBER_KIND && name === MEMBER_NAME
}

/** The member that a record makes of its publisher; undefined when it is no member record, cannot be read, or its chain is not good now. */
export function memberIn(
  record: SignedRecord,
  by: Omit<JudgedBy, 'subject'>,
): { member: Member; issues: boolean } | undefined {
  const body = record.deleted || !isMemberKey(record) ? undefined : memberBody.safeParse(record.body).data
  if (body === undefined) return undefined
  try {
    const verdict = judgeChain(decodeChain(body.chain), { ...by, subject: record.publisher })
    return 'member' in verdict ? { member: verdict.member, issues: body.issues } : undefined
  } catch (error) {
    if (error instanceof WireError) return undefined
    throw error
  }
}
