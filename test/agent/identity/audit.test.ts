/** The audit log: one bounded line for whatever happens, bounded files, and readers that follow. */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { Audit, type AuditEntry, type AuditFields, type AuditReading } from '../../../agent/identity/audit.ts'
import { clockAt, keptLog } from '../catalog/catalog.ts'
import { NOW } from './homes.ts'

const AT = new Date(NOW).toISOString()
const LINE_BYTES_MAX = 4_096

afterEach(() => void vi.useRealTimers())

function makeAudit({ fileBytesMax, directory = scratch() }: { fileBytesMax?: number; directory?: string } = {}) {
  const log = keptLog()
  const clock = clockAt(NOW)
  const path = join(directory, 'audit.jsonl')
  const audit = new Audit({ path, log, now: clock.now, ...(fileBytesMax && { fileBytesMax }) })
  onTestFinished(() => audit[Symbol.dispose]())
  return { audit, log, clock, path, directory }
}

function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-audit-'))
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

async function entries(audit: Audit, reading: AuditReading = {}): Promise<AuditEntry[]> {
  return Array.fromAsync(audit.read(reading))
}

const refused = (nth: number, why = 'no member'): AuditFields => ({ event: 'peer.refused', peerId: `peer${nth}`, why })
const made = (nth: number): AuditFields => ({ event: 'invitation.made', name: `m${nth}` })
const namesOf = (list: readonly AuditEntry[]) => list.map(({ name }) => name)

describe('an entry', () => {
  it('is a line of JSON with the time, in a file for the owner only', async () => {
    const { audit, path } = makeAudit()
    audit.append({ event: 'policy.changed', network: 'lab', by: 'founder', version: 2, why: undefined })
    expect(readFileSync(path, 'utf8')).toBe(
      `{"at":"${AT}","event":"policy.changed","network":"lab","by":"founder","version":2}\n`,
    )
    expect(statSync(path).mode & 0o777).toBe(0o600)
    expect(await entries(audit)).toEqual([
      { at: AT, event: 'policy.changed', network: 'lab', by: 'founder', version: 2 },
    ])
  })

  it('is one bounded line that no terminal obeys, whatever a peer calls itself', async () => {
    const { audit, path } = makeAudit()
    const text = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 400 }),
      fc
        .constantFrom('\u001b[2J', '\n', '\u2028', '\u202e', '\ud800', '\u{e0001}', '"', '\\', '\u0000', 'é')
        .chain((one) => fc.integer({ min: 0, max: 5_000 }).map((times) => one.repeat(times))),
    )
    const fields = fc.record({
      network: text,
      peerId: text,
      name: text,
      rule: text,
      why: text,
      by: text,
      address: text,
      labels: text,
      invitation: text,
    })
    fc.assert(
      fc.property(fields, (some) => {
        const before = existsSync(path) ? statSync(path).size : 0
        audit.append({ event: 'member.joined', ...some })
        const written = readFileSync(path).subarray(before)
        expect(written.byteLength).toBeLessThanOrEqual(LINE_BYTES_MAX)
        const line = written.toString('utf8')
        expect(line).toMatch(/^[^\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]+\n$/u)
        expect(JSON.parse(line)).toMatchObject({ at: AT, event: 'member.joined' })
      }),
      { numRuns: 300 },
    )
    expect((await entries(audit)).length).toBe(300)
  })

  it('that cannot be written stops nothing, is told of once, and does not keep the next from being written', async () => {
    const { audit, log, path } = makeAudit()
    mkdirSync(path)
    audit.append(made(1))
    audit.append(made(2))
    expect(log.entries.map(({ event }) => event)).toEqual(['audit.unwritable'])
    rmSync(path, { recursive: true })
    audit.append(made(3))
    expect(namesOf(await entries(audit))).toEqual(['m3'])
  })
})

describe('what repeats', () => {
  it('is told at once, and then once a minute with its count', async () => {
    vi.useFakeTimers()
    const { audit } = makeAudit()
    for (let nth = 0; nth < 5; nth++) audit.append(refused(1))
    audit.append(refused(1, 'another reason'))
    audit.append(refused(2))
    expect(await entries(audit)).toHaveLength(3)
    vi.advanceTimersByTime(60_000)
    expect((await entries(audit)).slice(3)).toEqual([{ at: AT, ...refused(1), count: 4 }])
    audit.append(refused(1))
    vi.advanceTimersByTime(120_000)
    expect((await entries(audit)).slice(4)).toEqual([{ at: AT, ...refused(1), count: 1 }])
    // Quiet for a minute: it is news again, and no timer is left.
    expect(vi.getTimerCount()).toBe(0)
    audit.append(refused(1))
    expect(await entries(audit)).toHaveLength(6)
  })

  it('is bounded however many strangers come, and hides nothing of another kind', async () => {
    vi.useFakeTimers()
    const { audit } = makeAudit()
    for (let nth = 0; nth < 10_000; nth++) audit.append(refused(nth))
    audit.append({ event: 'peer.cut', peerId: 'x', why: 'revoked' })
    audit.append(made(1))
    vi.advanceTimersByTime(60_000)
    const all = await entries(audit)
    expect(all.length).toBeLessThan(40)
    expect(all.reduce((sum, { event, count = 1 }) => sum + (event === 'peer.refused' ? count : 0), 0)).toBe(10_000)
    expect(all).toContainEqual({ at: AT, event: 'peer.cut', peerId: 'x', why: 'revoked' })
    expect(all).toContainEqual({ at: AT, ...made(1) })
  })

  it('and was counted is written when the agent stops', async () => {
    const { audit } = makeAudit()
    for (let nth = 0; nth < 3; nth++) audit.append(refused(1))
    audit[Symbol.dispose]()
    expect(await entries(audit)).toHaveLength(2)
  })
})

describe('the files', () => {
  it('are turned over at their size, and the oldest goes', async () => {
    const { audit, directory, path } = makeAudit({ fileBytesMax: 1_000 })
    for (let nth = 0; nth < 200; nth++) audit.append(made(nth))
    for (const age of ['', '.1', '.2', '.3', '.4']) expect(statSync(`${path}${age}`).size).toBeLessThanOrEqual(1_000)
    expect(existsSync(`${path}.5`)).toBe(false)
    const kept = namesOf(await entries(audit))
    expect(kept.length).toBeGreaterThan(40)
    expect(kept).toEqual(Array.from({ length: kept.length }, (_, nth) => `m${200 - kept.length + nth}`))
    audit[Symbol.dispose]()
    const again = makeAudit({ directory, fileBytesMax: 1_000 })
    again.audit.append(made(200))
    expect(namesOf(await entries(again.audit, { last: 20 }))).toEqual(
      Array.from({ length: 20 }, (_, nth) => `m${181 + nth}`),
    )
  })

  it('go on after a line that a crash cut, and what is no entry is left out', async () => {
    const directory = scratch()
    const good = `{"at":"${AT}","event":"invitation.made","name":"m0","later":{"a":1}}`
    writeFileSync(
      join(directory, 'audit.jsonl'),
      `${good}\nrubbish\n{"at":1}\n${'x'.repeat(200_000)}\n${good}\n{"at":"20`,
    )
    const { audit } = makeAudit({ directory })
    expect(await entries(audit)).toHaveLength(2)
    audit.append(made(1))
    expect(namesOf(await entries(audit))).toEqual(['m0', 'm0', 'm1'])
    expect((await entries(audit))[0]).toMatchObject({ later: { a: 1 } })
  })

  it.each([0, 1, 2, 7, 30, 1_000])('give the newest %i, across all of them', async (last) => {
    const { audit } = makeAudit({ fileBytesMax: 2_000 })
    for (let nth = 0; nth < 100; nth++) audit.append(made(nth))
    const all = namesOf(await entries(audit))
    expect(namesOf(await entries(audit, { last }))).toEqual(last === 0 ? [] : all.slice(-last))
  })

  it('give what is later than a time', async () => {
    const { audit, clock } = makeAudit()
    audit.append(made(1))
    clock.at += 1_000
    audit.append(made(2))
    expect(namesOf(await entries(audit, { after: new Date(NOW) }))).toEqual(['m2'])
  })
})

describe('a reader that follows', () => {
  it('gets each line once and in order, over files that are turned over, until it is told to stop', async () => {
    const { audit } = makeAudit({ fileBytesMax: 1_000 })
    const stop = new AbortController()
    audit.append(made(0))
    audit.append(made(1))
    const reader = audit.read({ last: 1, follow: true, signal: stop.signal })
    expect((await reader.next()).value).toMatchObject({ name: 'm1' })
    for (let nth = 2; nth < 100; nth++) {
      const next = reader.next()
      audit.append(made(nth))
      if (nth % 10 === 0) audit.append({ event: 'root.exported' })
      expect((await next).value).toMatchObject({ name: `m${nth}` })
      if (nth % 10 === 0) expect((await reader.next()).value).toMatchObject({ event: 'root.exported' })
    }
    const next = reader.next()
    stop.abort()
    expect(await next).toEqual({ value: undefined, done: true })
  })

  it('and stops reading costs nothing, and goes on where the oldest line is', async () => {
    const { audit } = makeAudit({ fileBytesMax: 1_000 })
    const reader = audit.read({ follow: true })
    audit.append(made(0))
    expect((await reader.next()).value).toMatchObject({ name: 'm0' })
    for (let nth = 1; nth < 500; nth++) audit.append(made(nth))
    const [oldest] = await entries(audit)
    expect((await reader.next()).value).toEqual(oldest)
    await reader.return(undefined)
  })

  it('needs no file to begin with', async () => {
    const { audit } = makeAudit()
    const reader = audit.read({ follow: true })
    const next = reader.next()
    audit.append(made(1))
    expect((await next).value).toMatchObject({ name: 'm1' })
    await reader.return(undefined)
  })
})

it('closes the file to others again', () => {
  const directory = scratch()
  const path = join(directory, 'audit.jsonl')
  writeFileSync(path, '')
  chmodSync(path, 0o644)
  makeAudit({ directory }).audit.append(made(1))
  expect(statSync(path).mode & 0o777).toBe(0o600)
})
