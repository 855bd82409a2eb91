/**
 * Errors as the distribution specification has them: one of its codes, an HTTP status, a message for people. What else goes wrong inside
 * becomes one here too, so that a client reads what happened (a full disk) and not "500".
 */
import { AgentError, type AgentErrorCode, reasonOf } from '../error.ts'

/** Closed list, of the specification. */
export type OciErrorCode =
  | 'BLOB_UNKNOWN'
  | 'BLOB_UPLOAD_INVALID'
  | 'BLOB_UPLOAD_UNKNOWN'
  | 'DIGEST_INVALID'
  | 'MANIFEST_BLOB_UNKNOWN'
  | 'MANIFEST_INVALID'
  | 'MANIFEST_UNKNOWN'
  | 'NAME_INVALID'
  | 'NAME_UNKNOWN'
  | 'SIZE_INVALID'
  | 'UNAUTHORIZED'
  | 'DENIED'
  | 'UNSUPPORTED'
  | 'TOOMANYREQUESTS'

/** Where an endpoint does not ask for another. */
const STATUS: Record<OciErrorCode, number> = {
  BLOB_UNKNOWN: 404,
  BLOB_UPLOAD_INVALID: 400,
  BLOB_UPLOAD_UNKNOWN: 404,
  DIGEST_INVALID: 400,
  MANIFEST_BLOB_UNKNOWN: 404,
  MANIFEST_INVALID: 400,
  MANIFEST_UNKNOWN: 404,
  NAME_INVALID: 400,
  NAME_UNKNOWN: 404,
  SIZE_INVALID: 400,
  UNAUTHORIZED: 401,
  DENIED: 403,
  UNSUPPORTED: 405,
  TOOMANYREQUESTS: 429,
}

/** Clients try a 5xx again, so one is said only where that may help; DENIED keeps them from it where it does not. */
const OTHERS: Partial<Record<AgentErrorCode, [OciErrorCode, number]>> = {
  usage: ['UNSUPPORTED', 400],
  'not-allowed': ['DENIED', 403],
  'not-found': ['BLOB_UNKNOWN', 404],
  limit: ['DENIED', 507],
}

/** A header longer than this is cut: what a client wrote is repeated in messages. */
const MESSAGE_LENGTH_MAX = 1_000

export class OciError extends AgentError {
  readonly oci: OciErrorCode
  readonly status: number
  readonly detail: unknown

  constructor(
    oci: OciErrorCode,
    message: string,
    { status = STATUS[oci], detail }: { status?: number; detail?: unknown } = {},
  ) {
    super(status === 404 ? 'not-found' : status === 403 ? 'not-allowed' : 'usage', message)
    this.oci = oci
    this.status = status
    this.detail = detail
  }
}

export type ErrorBody = { errors: { code: OciErrorCode; message: string; detail?: unknown }[] }

/** What to answer for whatever was thrown. */
export function answerOf(error: unknown): { status: number; body: ErrorBody } {
  const next = error instanceof AgentError && error.next !== undefined ? ` ${error.next}` : ''
  const message = `${reasonOf(error)}${next}`.slice(0, MESSAGE_LENGTH_MAX)
  if (error instanceof OciError) {
    const { oci: code, status, detail } = error
    return { status, body: { errors: [{ code, message, ...(detail === undefined ? {} : { detail }) }] } }
  }
  const [code, status] = (error instanceof AgentError && OTHERS[error.code]) || (['UNSUPPORTED', 500] as const)
  return { status, body: { errors: [{ code, message }] } }
}
