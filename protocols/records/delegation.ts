/**
 * A delegation on its way to the key that it is for: the body of a record of kind `delegation`, whose name is the delegation's id in
 * hexadecimal. See spec.md beside this file; the delegation is that of ../membership/spec.md, which no record makes good.
 */
import { z } from 'zod'
import { WireError } from '../error.ts'
import { type Delegation, verifyDelegation } from '../membership/certificate.ts'
import { STATEMENT_BYTES_MAX } from '../membership/statement.ts'

export const DELEGATION_KIND = 'delegation'

/** Unknown fields are ignored: later versions add some. */
const delegationBody = z.object({
  v: z.int().min(1),
  delegation: z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.byteLength <= STATEMENT_BYTES_MAX,
    'not the bytes of a delegation',
  ),
})
export type DelegationBody = z.infer<typeof delegationBody>

/** The delegation in a body; undefined when there is none, or it is not by the root of this network. */
export function delegationIn(body: unknown, network: Uint8Array): Delegation | undefined {
  const read = delegationBody.safeParse(body).data
  if (read === undefined) return undefined
  try {
    return verifyDelegation(Uint8Array.from(read.delegation), network)
  } catch (error) {
    if (error instanceof WireError) return undefined
    throw error
  }
}
