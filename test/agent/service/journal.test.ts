/** What goes into the journal, read as journald reads it. A real one is asked in bench/soak-install.ts. */
import { spawnSync } from 'node:child_process'
import { fstatSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { journalEntry, openJournal } from '../../../agent/service/journal.ts'

/** journald's own reading: `NAME=value` lines, and `NAME`, eight bytes of length and as much of value. */
function read(bytes: Buffer): [string, string][] {
  const fields: [string, string][] = []
  let at = 0
  while (at < bytes.byteLength) {
    const end = bytes.indexOf(0x0a, at)
    const line = bytes.toString('utf8', at, end)
    const equals = line.indexOf('=')
    if (equals >= 0) {
      fields.push([line.slice(0, equals), line.slice(equals + 1)])
      at = end + 1
      continue
    }
    const length = Number(bytes.readBigUInt64LE(end + 1))
    fields.push([line, bytes.toString('utf8', end + 9, end + 9 + length)])
    at = end + 9 + length
    expect(bytes[at]).toBe(0x0a)
    at += 1
  }
  return fields
}

const entry = (fields: object) =>
  Object.fromEntries(read(journalEntry({ level: 'info', time: '2026-01-02T15:04:05Z', ...fields }, 'undernet')))

describe('journalEntry', () => {
  it('has the priority, a line for people, and each field', () => {
    expect(entry({ level: 'warn', msg: 'peer.connected', peerId: '12D3', rttMs: 3, tags: ['a'] })).toEqual({
      PRIORITY: '4',
      SYSLOG_IDENTIFIER: 'undernet',
      MESSAGE: 'peer.connected peerId=12D3 rttMs=3 tags=["a"]',
      UNDERNET_EVENT: 'peer.connected',
      UNDERNET_PEER_ID: '12D3',
      UNDERNET_RTT_MS: '3',
      UNDERNET_TAGS: '["a"]',
    })
  })

  it('shows where an error came from', () => {
    const { MESSAGE, UNDERNET_REASON } = entry({
      msg: 'api.failed',
      err: { message: 'no', stack: 'Error: no\n  at f' },
    })
    expect(MESSAGE).toBe('api.failed\nError: no\n at f')
    expect(UNDERNET_REASON).toBe('no')
  })

  it('keeps what a peer wrote inside its field, whatever that is', () => {
    const forged = entry({ msg: 'peer.refused', reason: 'x\nPRIORITY=0\nMESSAGE=forged' })
    expect(forged).toMatchObject({
      PRIORITY: '6',
      MESSAGE: 'peer.refused reason=x PRIORITY=0 MESSAGE=forged',
      UNDERNET_REASON: 'x\nPRIORITY=0\nMESSAGE=forged',
    })
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), fc.string({ unit: 'binary' }), (key, value) => {
        const fields = read(journalEntry({ level: 'info', msg: 'x', [`f${key}`]: value }, 'undernet'))
        expect(fields.map(([name]) => name).slice(0, 4)).toEqual([
          'PRIORITY',
          'SYSLOG_IDENTIFIER',
          'MESSAGE',
          'UNDERNET_EVENT',
        ])
        expect(fields).toHaveLength(5)
        expect(fields[4]?.[0]).toMatch(/^UNDERNET_[A-Z0-9_]{1,55}$/)
        expect(fields[4]?.[1]).toBe(value.toWellFormed())
      }),
    )
  })
})

describe('openJournal', () => {
  it('leaves a stderr alone that is not the journal', async () => {
    expect(await openJournal('undernet', {})).toBeUndefined()
    const { dev, ino } = fstatSync(2)
    expect(await openJournal('undernet', { JOURNAL_STREAM: `${dev}:${ino + 1}` })).toBeUndefined()
    expect(await openJournal('undernet', { JOURNAL_STREAM: `${dev}:${ino}` })).toBeDefined()
  })

  it('has what journald does not take on stderr, a line each, with the priority in front', () => {
    const program = `
      import { fstatSync } from 'node:fs'
      import { openJournal } from ${JSON.stringify(new URL('../../../agent/service/journal.ts', import.meta.url).href)}
      const { dev, ino } = fstatSync(2)
      const journal = await openJournal('undernet', { JOURNAL_STREAM: dev + ':' + ino }, '/nowhere/socket')
      journal.write(JSON.stringify({ level: 'error', msg: 'disk.full', reason: 'a\\nb' }) + '\\n')
      journal.write(JSON.stringify({ level: 'info', msg: 'agent.started' }) + '\\n')`
    const { stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' })
    expect(stderr).toBe(
      '<3>{"level":"error","msg":"disk.full","reason":"a\\nb"}\n<6>{"level":"info","msg":"agent.started"}\n',
    )
  })
})
