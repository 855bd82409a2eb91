/**
 * The agent's log: JSON lines on stderr for programs, short readable lines on a terminal, and in the journal what journald makes of it
 * (service/journal.ts). An entry is an event name (`noun.verb`)
 * and fields; it is written once, where the event is handled. Secrets are never fields.
 */
import { Writable } from 'node:stream'
import { styleText } from 'node:util'
import { destination, type Logger, type LoggerOptions, levels, pino } from 'pino'
import { printable } from './printable.ts'

export type Log = Pick<Logger, 'debug' | 'info' | 'warn' | 'error'>
export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent'

/** Takes pino's lines. */
export type LogLines = { write(line: string): void }
type Told = { journal?: LogLines | undefined; terminal?: boolean; onEntry?: (level: string, event: string) => void }

/**
 * The logger of a running agent. Its level can be changed while it runs (`log.level = 'debug'`). `journal` takes the lines where there is one;
 * `onEntry` is told of what is logged.
 */
export function makeLog(level: LogLevel, { journal, terminal = process.stderr.isTTY, onEntry }: Told = {}): Logger {
  const options: LoggerOptions = {
    level,
    ...(onEntry !== undefined && { hooks: { logMethod: counting(onEntry) } }),
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  if (journal) return pino(options, journal)
  return terminal ? pino(options, readable()) : pino(options, destination({ fd: 2, sync: true }))
}

/** An entry is fields and an event: the second argument. */
function counting(
  onEntry: NonNullable<Told['onEntry']>,
): NonNullable<NonNullable<LoggerOptions['hooks']>['logMethod']> {
  return function logMethod(args, method, level) {
    const [, event] = args as unknown[]
    onEntry(levels.labels[level] ?? String(level), typeof event === 'string' ? event : '')
    method.apply(this, args)
  }
}

const COLOURS = { debug: 'gray', info: 'green', warn: 'yellow', error: 'red' } as const

/** Turns pino's JSON lines into `15:04:05 info  peer.connected peerId=12D3... rttMs=3`. */
function readable(): Writable {
  return new Writable({
    write(line: Buffer, _encoding, done) {
      process.stderr.write(readableLine(line.toString()))
      done()
    },
  })
}

/** One entry; below it the stack of an error, if there is one. */
export function readableLine(line: string): string {
  const { level, time, msg, err, ...fields } = JSON.parse(line) as {
    level: keyof typeof COLOURS
    time: string
    msg?: string
    err?: { message?: string; stack?: string }
  }
  const words = Object.entries(fields).map(
    ([key, value]) => `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  )
  const label = styleText(COLOURS[level] ?? 'gray', level.padEnd(5), { stream: process.stderr })
  // Some fields quote what a peer wrote.
  const lines = [[msg ?? '', ...words].join(' '), ...(err?.stack ?? err?.message ?? '').split('\n')].map(printable)
  return `${time.slice(11, 19)} ${label} ${lines.filter((one) => one !== '').join(`\n${' '.repeat(15)}`)}\n`
}
