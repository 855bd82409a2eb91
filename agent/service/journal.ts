/**
 * The log in systemd's journal, by journald's own protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/): an entry has its priority, a line
 * for people, and each field as one of its own, so that `journalctl UNDERNET_EVENT=peer.refused UNDERNET_PEER_ID=12D3...` finds it.
 *
 * What journald does not take, because it is being restarted or the entry is huge, goes to stderr with its priority in front, as journald
 * reads it there: a line is late rather than lost.
 */
import { fstatSync } from 'node:fs'
import type { LogLines } from '../log.ts'
import { printable } from '../printable.ts'
import { openDatagrams, type Send } from './datagrams.ts'

const JOURNAL_SOCKET = '/run/systemd/journal/socket'
const STDERR = 2
/** As in <syslog.h>. */
const PRIORITIES: Readonly<Record<string, number>> = { error: 3, warn: 4, info: 6, debug: 7 }
/** journald takes names of up to 64 characters; no event has so many fields. */
const NAME_LENGTH_MAX = 64
const FIELDS_MAX = 64

type Environment = Readonly<Record<string, string | undefined>>
type Entry = { level: string; msg?: string; err?: { message?: string; stack?: string } } & Record<string, unknown>

/** Where lines go when stderr is the journal's; undefined when it is not. */
export async function openJournal(
  identifier: string,
  env: Environment = process.env,
  socket = JOURNAL_SOCKET,
): Promise<LogLines | undefined> {
  if (!isJournal(env)) return undefined
  let send: Send
  try {
    send = await openDatagrams(socket)
  } catch {
    send = () => false
  }
  return {
    write(line) {
      const entry = JSON.parse(line) as Entry
      if (!send(journalEntry(entry, identifier))) process.stderr.write(`<${priorityOf(entry)}>${line}`)
    },
  }
}

/** systemd names the stream that it made stderr; a shell may have sent that elsewhere since. */
function isJournal({ JOURNAL_STREAM }: Environment): boolean {
  const { dev, ino } = fstatSync(STDERR)
  return JOURNAL_STREAM === `${dev}:${ino}`
}

/** An entry as journald reads it. */
export function journalEntry({ level, msg = '', err, ...fields }: Entry, identifier: string): Buffer {
  // It has a clock of its own.
  const told = Object.entries(fields)
    .filter(([key]) => key !== 'time')
    .slice(0, FIELDS_MAX)
  const words = told.map(([key, value]) => `${key}=${textOf(value)}`)
  const why = err?.stack ?? err?.message
  return Buffer.concat([
    field('PRIORITY', String(priorityOf({ level }))),
    field('SYSLOG_IDENTIFIER', identifier),
    field('MESSAGE', [[msg, ...words].join(' '), ...(why?.split('\n') ?? [])].map(printable).join('\n')),
    field('UNDERNET_EVENT', msg),
    ...(err?.message === undefined ? [] : [field('UNDERNET_REASON', err.message)]),
    ...told.map(([key, value]) => field(nameOf(key), textOf(value))),
  ])
}

function priorityOf({ level }: Pick<Entry, 'level'>): number {
  return PRIORITIES[level] ?? 6
}

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : (JSON.stringify(value) ?? '')
}

/** `peerId` is UNDERNET_PEER_ID. */
function nameOf(key: string): string {
  const name = key.replace(/([a-z0-9])([A-Z])/g, '$1_$2').toUpperCase()
  return `UNDERNET_${name.replace(/[^A-Z0-9_]/g, '_')}`.slice(0, NAME_LENGTH_MAX)
}

/** A value with line breaks says its length instead, so that nobody's text begins a field of its own. */
function field(name: string, value: string): Buffer {
  if (!value.includes('\n')) return Buffer.from(`${name}=${value}\n`)
  const bytes = Buffer.from(value)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(bytes.byteLength))
  return Buffer.concat([Buffer.from(`${name}\n`), length, bytes, Buffer.from('\n')])
}
