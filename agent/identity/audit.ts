/**
 * The audit log: who came, was let in, was refused and by which rule, and who changed what. A file of JSON lines in the state directory that
 * is only ever appended to and turned over at a size, with a few old ones kept.
 *
 * It is bounded in every way a stranger could press on: a line has a limit and is one line whatever a peer writes; what repeats is
 * counted, and told once a minute. Writing never stops anything: what cannot be written is told of in the agent's log.
 */
import { closeSync, existsSync, fchmodSync, fstatSync, openSync, readSync, renameSync, writeSync } from 'node:fs'
import { z } from 'zod'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { printableJson } from '../printable.ts'
import { NewLines } from './audit-lines.ts'

/** Then the file is turned over: some 40,000 lines, weeks of a quiet network. */
const FILE_BYTES_MAX = 8 * 1024 * 1024
/** Beside the present one. */
const OLD_FILES_MAX = 4
/** Of each text in an entry. Reasons are sentences; names and keys are shorter. */
const TEXT_LENGTH_MAX = 240
/** As it is written, with every character that a terminal could take amiss written in six. Longer ones have their texts cut. */
const LINE_BYTES_MAX = 4_096
const CUT_LENGTH_MAX = 40
/** How often repeats are told. */
const REPEAT_MS = 60_000
/** Of each event, different ones that are told apart in that time: a flood of strangers makes 70 lines a minute, and fills the files in days. */
const REPEATS_MAX = 32

/** For what is not told apart. */
const OTHERS = ''

/** What repeats without end when a peer wants it to. */
const REPEATABLE = new Set<AuditEvent>(['peer.admitted', 'peer.refused', 'peer.cut', 'access.refused'])

/** Stable: people filter by them. */
export type AuditEvent =
  | 'peer.admitted'
  | 'peer.refused'
  | 'peer.cut'
  | 'peer.lied'
  | 'access.refused'
  | 'member.joined'
  | 'member.revoked'
  | 'member.labelled'
  | 'issuer.delegated'
  | 'issuer.revoked'
  | 'policy.changed'
  | 'network.created'
  | 'network.joined'
  | 'network.left'
  | 'invitation.made'
  | 'invitation.withdrawn'
  | 'root.exported'
  | 'root.imported'
  | 'root.removed'
  | 'certificate.renewed'
  | 'flow.used'
  | 'flow.served'

const text = z.string()
const entryFields = z.looseObject({
  at: z.iso.datetime(),
  event: z.string().regex(/^[a-z]+\.[a-z-]+$/),
  network: text.optional(),
  peerId: text.optional(),
  name: text.optional(),
  rule: text.optional(),
  why: text.optional(),
  by: text.optional(),
  address: text.optional(),
  labels: text.optional(),
  invitation: text.optional(),
  version: z.int().optional(),
  service: text.optional(),
  path: text.optional(),
  flows: z.int().optional(),
  sentBytes: z.int().optional(),
  receivedBytes: z.int().optional(),
  count: z.int().positive().optional(),
})

/** As it is read: also what other versions wrote. */
export type AuditEntry = z.infer<typeof entryFields>

/** What happened. Texts may be of peers. */
export type AuditFields = {
  readonly event: AuditEvent
  /** The network's name. */
  readonly network?: string | undefined
  readonly peerId?: string | undefined
  /** Of a member. */
  readonly name?: string | undefined
  /** The grant that allowed it, or its like. */
  readonly rule?: string | undefined
  readonly why?: string | undefined
  /** Whoever signed it or asked for it. */
  readonly by?: string | undefined
  readonly address?: string | undefined
  /** `zone=a, role=db`. */
  readonly labels?: string | undefined
  /** Its id. */
  readonly invitation?: string | undefined
  /** Of a policy. */
  readonly version?: number | undefined
  /** Of tunnels: to what, how, how many, how much. */
  readonly service?: string | undefined
  readonly path?: string | undefined
  readonly flows?: number
  readonly sentBytes?: number
  readonly receivedBytes?: number
}

export type AuditOptions = {
  readonly path: string
  readonly log: Log
  readonly now?: () => number
  readonly fileBytesMax?: number
}

export type AuditReading = {
  /** Of the entries that are there: the newest so many. All if not said. */
  readonly last?: number | undefined
  /** Only what is later than this. */
  readonly after?: Date | undefined
  /** Goes on with what comes, until the signal. */
  readonly follow?: boolean | undefined
  readonly signal?: AbortSignal | undefined
}

type Repeat = { readonly fields: AuditFields; count: number }

export class Audit implements Disposable {
  readonly #path: string
  readonly #log: Log
  readonly #now: () => number
  readonly #fileBytesMax: number
  readonly #repeats = new Map<AuditEvent, Map<string, Repeat>>()
  readonly #lines: NewLines
  #fd: number | undefined
  #sizeBytes = 0
  #isFailing = false
  #timer: NodeJS.Timeout | undefined

  constructor({ path, log, now = Date.now, fileBytesMax = FILE_BYTES_MAX }: AuditOptions) {
    this.#path = path
    this.#log = log
    this.#now = now
    this.#fileBytesMax = fileBytesMax
    this.#lines = new NewLines(path, OLD_FILES_MAX)
  }

  /** Notes what happened. Never throws. */
  append(fields: AuditFields): void {
    const { event, network, peerId, rule, why } = fields
    if (!REPEATABLE.has(event)) {
      this.#write(fields)
      return
    }
    const key = JSON.stringify([network, peerId, rule, why].map((one) => one?.slice(0, TEXT_LENGTH_MAX)))
    const alike = this.#repeats.get(event) ?? new Map<string, Repeat>()
    this.#repeats.set(event, alike)
    const isRoom = alike.size < REPEATS_MAX
    const repeat = alike.get(key) ?? (isRoom ? undefined : alike.get(OTHERS))
    if (repeat !== undefined) repeat.count++
    else if (isRoom) {
      alike.set(key, { fields, count: 0 })
      this.#write(fields)
    } else alike.set(OTHERS, { fields: { event, why: 'others, too many to tell apart' }, count: 1 })
    this.#timer ??= setInterval(() => this.#tellRepeats(), REPEAT_MS).unref()
  }

  /** Oldest first. Reads no faster than it is asked, and keeps nothing for a reader that stops. */
  async *read({ last, after, follow = false, signal }: AuditReading = {}): AsyncGenerator<AuditEntry> {
    for await (const line of this.#lines.read({ last, follow, signal })) {
      const entry = parseEntry(line)
      if (entry !== undefined && (after === undefined || Date.parse(entry.at) > after.getTime())) yield entry
    }
  }

  /** Writes what was counted, and lets go of the file. */
  [Symbol.dispose](): void {
    this.#tellRepeats()
    clearInterval(this.#timer)
    this.#timer = undefined
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
  }

  /** What did not repeat within a minute is told anew when it happens again. */
  #tellRepeats(): void {
    for (const [event, alike] of this.#repeats) {
      for (const [key, repeat] of alike) {
        if (repeat.count === 0 || key === OTHERS) alike.delete(key)
        if (repeat.count > 0) this.#write(repeat.fields, repeat.count)
        repeat.count = 0
      }
      if (alike.size === 0) this.#repeats.delete(event)
    }
    if (this.#repeats.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #write(fields: AuditFields, count?: number): void {
    try {
      const at = new Date(this.#now()).toISOString()
      const line = Buffer.from(`${lineOf({ at, ...fields, ...(count !== undefined && { count }) })}\n`)
      if (this.#fd !== undefined && this.#sizeBytes + line.byteLength > this.#fileBytesMax) this.#turnOver()
      this.#fd ??= this.#open()
      this.#sizeBytes += line.byteLength
      if (writeSync(this.#fd, line) < line.byteLength) throw new Error('only a part of the line was written')
      this.#isFailing = false
      this.#lines.wake()
    } catch (error) {
      if (this.#fd !== undefined) closeSync(this.#fd)
      this.#fd = undefined
      if (!this.#isFailing) this.#log.error({ file: this.#path, reason: reasonOf(error) }, 'audit.unwritable')
      this.#isFailing = true
    }
  }

  #open(): number {
    const fd = openSync(this.#path, 'a+', 0o600)
    fchmodSync(fd, 0o600)
    this.#sizeBytes = fstatSync(fd).size
    // The last line may have been cut by a power cut or a full disk.
    const last = Buffer.alloc(1)
    if (this.#sizeBytes > 0 && readSync(fd, last, 0, 1, this.#sizeBytes - 1) === 1 && last[0] !== 0x0a)
      this.#sizeBytes += writeSync(fd, '\n')
    return fd
  }

  #turnOver(): void {
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
    for (let number = OLD_FILES_MAX - 1; number >= 0; number--) {
      const from = this.#lines.path(number)
      if (existsSync(from)) renameSync(from, this.#lines.path(number + 1))
    }
    this.#lines.turnedOver()
  }
}

/** One line without an end, whatever is in the texts. */
function lineOf(entry: Readonly<Record<string, string | number | undefined>>): string {
  const line = printableJson(cut(entry, TEXT_LENGTH_MAX))
  return Buffer.byteLength(line) < LINE_BYTES_MAX ? line : printableJson(cut(entry, CUT_LENGTH_MAX))
}

function cut(entry: Readonly<Record<string, string | number | undefined>>, lengthMax: number): object {
  return Object.fromEntries(
    Object.entries(entry).map(([key, value]) => [
      key,
      typeof value === 'string' && value.length > lengthMax ? `${value.slice(0, lengthMax - 1)}…` : value,
    ]),
  )
}

/** Undefined for what is none: a line that was cut, or another hand's. */
function parseEntry(line: string): AuditEntry | undefined {
  try {
    return entryFields.parse(JSON.parse(line))
  } catch {
    return undefined
  }
}
