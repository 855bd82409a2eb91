/**
 * A node is looked after: measured, reported, backed up while it works, lost, and made again on another machine; and the state of an agent of the
 * first days is taken over by that of today.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { SearchResult } from '../../agent/api/contract.ts'
import type { DoctorResult } from '../../agent/api/upkeep-contract.ts'
import { METRICS, type MetricRow } from '../../agent/metrics/table.ts'
import { databaseFiles } from '../../agent/state/directory.ts'
import { SCHEMA_VERSIONS } from '../../agent/state/schema.ts'
import { COPY_SUFFIX } from '../../agent/state/upgrade.ts'
import { type RealAgent, until } from '../agents.ts'
import { readExposition } from '../exposition.ts'
import { ELDER, oldState } from '../first-days.ts'
import { allSee, invite, joinWith, Lab } from './members.ts'

const PASSPHRASE = 'correct-horse-battery-staple'
const PLANTED = 'hunter22'
let lab: Lab
let oak: RealAgent
let elm: RealAgent

beforeAll(async () => {
  lab = await Lab.open()
  const planted = `--join-file=${lab.file(`token=${PLANTED}`, '# none\n')}`
  ;[oak, elm] = await Promise.all([
    lab.start({ name: 'oak-tree', flags: ['--no-open'] }),
    lab.start({ name: 'elm-tree', flags: ['--no-open', planted] }),
  ])
  await done(oak, 'network', 'create', 'grove')
  await joinWith(elm, await invite(oak))
  await allSee([oak, elm], ['oak-tree', 'elm-tree'])
})
afterAll(async () => {
  await lab[Symbol.asyncDispose]()
})

async function done(agent: RealAgent, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await lab.run(agent, ...args)
  expect(code, `agent ${args.join(' ')}: ${stderr}${stdout}`).toBe(0)
  return stdout
}

async function sees(agent: RealAgent, name: string): Promise<void> {
  await until(async () => (await agent.json<SearchResult>('search', name)).artifacts.some((one) => one.name === name), {
    what: () => `${agent.name} sees ${name}`,
    ms: 60_000,
  })
}

const published = (name: string) => lab.file(name, `this is ${name}\n`)

describe('a node that is looked after', () => {
  test('tells its metrics, each as the table has it', async () => {
    await done(elm, 'publish', published('acorn'), '--network', 'grove')
    await sees(oak, 'acorn')
    await done(oak, 'get', 'acorn', '--to', lab.path('got'))
    const { http } = await oak.status()
    const answer = await fetch(`${http}/metrics`)
    expect(answer.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8')
    const families = readExposition(await answer.text())
    for (const [name, { type, help }] of families) {
      const row: MetricRow | undefined = METRICS[name as keyof typeof METRICS]
      expect({ name, type, help }).toEqual({ name, type: row?.type, help: row?.help })
    }
    const sum = (name: keyof typeof METRICS, labels = {}) =>
      (families.get(name)?.samples ?? [])
        .filter((sample) => Object.entries(labels).every(([label, value]) => sample.labels[label] === value))
        .reduce((total, { value }) => total + value, 0)
    expect(sum('undernet_peers', { path: 'direct' })).toBe(1)
    expect(sum('undernet_network_members', { network: 'grove' })).toBe(2)
    expect(sum('undernet_certificate_expiry_timestamp_seconds')).toBeGreaterThan(Date.now() / 1_000)
    expect(sum('undernet_content_fetched_bytes_total', { from: 'streams' })).toBe('this is acorn\n'.length)
    expect(sum('undernet_records_received_total', { network: 'grove', outcome: 'new' })).toBeGreaterThan(0)
    expect(sum('libp2p_data_transfer_bytes_total', { direction: 'received' })).toBeGreaterThan(1_000)
    expect(sum('libp2p_connections', { state: 'inbound' }) + sum('libp2p_connections', { state: 'outbound' })).toBe(1)
    expect(sum('undernet_log_entries_total', { event: 'agent.started' })).toBe(1)
    const named = [...families.values()].flatMap(({ samples }) =>
      samples.flatMap(({ labels }) => Object.values(labels)),
    )
    expect(named.filter((value) => /12D3KooW|elm-tree|\d+\.\d+\.\d+\.\d+/.test(value))).toEqual([])
    expect(
      readExposition(await (await fetch(`${http}/metrics`)).text()).get('undernet_http_requests_total')?.samples,
    ).toContainEqual(expect.objectContaining({ labels: { front: 'metrics', code: '2xx' }, value: 1 }))
  })

  test('is examined, with an id for each finding', async () => {
    const { checks } = JSON.parse(await done(oak, 'doctor', '--json')) as DoctorResult
    expect(checks.map(({ id }) => id)).toEqual(expect.arrayContaining(['configuration', 'agent', 'peers']))
    expect(checks.filter(({ state }) => state === 'failed')).toEqual([])
  })

  test('is reported without a secret, an id or a name, unless these are wished for', async () => {
    const read = async (...flags: string[]) => {
      const file = lab.path(`report${flags.length}.tar.gz`)
      await done(elm, 'bugreport', file, ...flags)
      expect(statSync(file).mode & 0o777).toBe(0o600)
      const listed = execFileSync('tar', ['tzf', file], { encoding: 'utf8' }).trim().split('\n')
      expect(listed).toEqual(['report.json', 'status.json', 'doctor.json', 'config.json', 'metrics.txt', 'log.txt'])
      return execFileSync('tar', ['xzOf', file], { encoding: 'utf8' })
    }
    const { peerId } = await elm.status()
    const other = (await oak.status()).peerId
    const report = await read()
    for (const secret of [PLANTED, peerId, other, 'elm-tree', 'oak-tree', 'grove', 'acorn-'])
      expect(report.includes(secret), secret).toBe(false)
    expect(report).toMatch(/"version"/)
    expect(report).toMatch(/network-1/)
    expect(report).toMatch(/peer-1/)
    expect(report).toMatch(/token=\[secret\]/)
    const named = await read('--with-names')
    expect(named).toContain(other)
    expect(named).toContain('oak-tree')
    expect(named).not.toContain(PLANTED)
    const again = await lab.run(elm, 'bugreport', lab.path('report0.tar.gz'))
    expect(again).toMatchObject({ code: 1, stderr: expect.stringContaining('exists') })
  })
})

describe('a node that is lost', () => {
  test('is made again of its backup: the same id, still a member, with its root key, and its records go on', async () => {
    const passphrase = lab.file('passphrase', `${PASSPHRASE}\n`)
    const file = lab.path('oak.age')
    await done(oak, 'publish', published('before'), '--network', 'grove')
    const said = await done(oak, 'backup', file, '--passphrase-file', passphrase)
    expect(said).toMatch(/read back, and is whole/)
    expect(statSync(file).mode & 0o777).toBe(0o600)
    expect((await lab.run(oak, 'backup', file, '--passphrase-file', passphrase)).stderr).toMatch(/exists/)
    // What is said after the backup is known to others, and not to what comes of it.
    await done(oak, 'publish', published('after'), '--network', 'grove')
    await sees(elm, 'after')
    await done(elm, 'get', 'before', '--to', lab.path('kept-elsewhere'))
    const { peerId } = await oak.status()

    const running = await lab.run(oak, 'restore', file, '--replace', '--passphrase-file', passphrase)
    expect(running).toMatchObject({ code: 1, stderr: expect.stringContaining('another agent uses the state') })
    await oak.end('SIGKILL')
    rmSync(oak.state, { recursive: true })
    mkdirSync(oak.state, { mode: 0o700 })
    const wrong = lab.file('wrong', 'something else\n')
    expect(await lab.run(oak, 'restore', file, '--passphrase-file', wrong)).toMatchObject({
      code: 4,
      stderr: expect.stringContaining('passphrase'),
    })
    expect(await done(oak, 'restore', file, '--passphrase-file', passphrase)).toContain(peerId)

    oak = await lab.restart(oak)
    expect((await oak.status()).peerId).toBe(peerId)
    await allSee([oak, elm], ['oak-tree', 'elm-tree'])
    expect(JSON.parse(await done(oak, 'network', 'show', 'grove', '--json'))).toMatchObject({
      issues: true,
      member: { state: 'member' },
    })
    await sees(oak, 'before')
    await done(oak, 'publish', published('again'), '--network', 'grove')
    await sees(elm, 'again')
    await sees(elm, 'before')
    // Content is in no backup: that is told, and a peer who has it helps.
    const unheld = async () => {
      const { checks } = await oak.client.get<DoctorResult>('doctor')
      return checks.find(({ id }) => id === 'content.unheld')?.message
    }
    expect(await unheld()).toMatch(/1 artifacts .*: before$/)
    await done(oak, 'get', 'before', '--to', lab.path('back'))
    expect(await unheld()).toBeUndefined()
    // Two truths with one seq are a proof that anybody would keep.
    for (const { state } of [oak, elm]) expect(proofsIn(state)).toEqual([0, 0])
  })
})

function proofsIn(state: string): number[] {
  return databaseFiles(state).map((name) => {
    const db = new DatabaseSync(join(state, name), { readOnly: true })
    const hasProofs = db.prepare("SELECT 1 FROM sqlite_master WHERE name = 'record_proofs'").get() !== undefined
    const row = hasProofs ? db.prepare('SELECT count(*) AS count FROM record_proofs').get() : { count: 0 }
    db.close()
    return Number(row?.count)
  })
}

describe('the state of the first days', () => {
  test('is taken over: id, what was published and is kept, whom it trusts; and there is a way back', async () => {
    const state = oldState()
    const elder = await lab.start({ name: 'elder', state })
    expect((await elder.status()).peerId).toBe(ELDER.peerId)
    const { artifacts } = await elder.json<SearchResult>('search')
    expect(
      artifacts
        .filter(({ own }) => own)
        .map(({ name }) => name)
        .sort(),
    ).toEqual(['bundle', 'closure', 'letter'])
    await done(elder, 'get', 'letter', '--to', lab.path('kept'))
    expect(readFileSync(join(lab.path('kept'), 'letter'), 'utf8')).toBe(ELDER.letter)
    expect(await done(elder, 'trust', 'list')).toContain(ELDER.trusts)
    await lab.end(elder)
    const version = () => {
      const db = new DatabaseSync(join(state, 'state.db'))
      const row = db.prepare("SELECT version FROM schema_versions WHERE part = 'content'").get()
      db.close()
      return row
    }
    expect(version()).toEqual({ version: SCHEMA_VERSIONS.content })
    expect(statSync(join(state, `state.db${COPY_SUFFIX}`)).isFile()).toBe(true)
    // A downgrade: what a newer agent wrote is not touched, and the way back is said.
    const db = new DatabaseSync(join(state, 'state.db'))
    db.exec("UPDATE schema_versions SET version = 9 WHERE part = 'catalog'")
    db.close()
    const refused = await lab.launch({ name: 'elder', state })
    expect(await refused.ended).toMatchObject({ code: 1 })
    expect(refused.log.join('\n')).toMatch(
      /newer agent \(catalog 9, known here: 1\)[\s\S]*agent restore --before-upgrade/,
    )
    expect(await done(refused, 'restore', '--before-upgrade', '--state', state)).toMatch(/as before the upgrade/)
    expect(version()).toEqual({ version: 1 })
    rmSync(state, { recursive: true })
  })
})
