/**
 * The agent's log: JSON lines on stderr for a service, short readable lines on a terminal. An entry is an event name (`noun.verb`)
 * and fields; it is written once, where the event is handled. Secrets are never fields.
 */
import { Writable } from 'node:stream'
import { styleText } from 'node:util'
import { destination, type Logger, pino } from 'pino'

export type Log = Pick<Logger, 'debug' | 'info' | 'warn' | 'error'>
export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

/** The logger of a running agent. Its level can be changed while it runs (`log.level = 'debug'`). */
export function makeLog(level: LogLevel, terminal = process.stderr.isTTY): Logger {
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  return terminal ? pino(options, readable()) : pino(options, destination({ fd: 2, sync: true }))
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

function readableLine(line: string): string {
  const { level, time, msg, ...fields } = JSON.parse(line) as {
    level: keyof typeof COLOURS
    time: string
    msg?: string
  }
  const words = Object.entries(fields).map(
    ([key, value]) => `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  )
  const label = styleText(COLOURS[level] ?? 'gray', level.padEnd(5), { stream: process.stderr })
  return `${time.slice(11, 19)} ${label} ${[msg ?? '', ...words].join(' ')}\n`
}
