/**
 * `agent bugreport`: what somebody who helps needs to see, in one file, with nothing in it that is nobody's business: see redaction.ts. Works without
 * a running agent, too.
 */
import { open } from 'node:fs/promises'
import { homedir, hostname, release, type as systemName, totalmem } from 'node:os'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGzip } from 'node:zlib'
import type { Client } from '../api/client.ts'
import type { ConfigView, Status } from '../api/contract.ts'
import type { MemberList } from '../api/membership-contract.ts'
import { filesEnvironment } from '../config/paths.ts'
import { AgentError, reasonOf } from '../error.ts'
import { VERSION } from '../version.ts'
import type { CommandLine } from './command-line.ts'
import { thisMachine } from './machine.ts'
import { type Named, Redaction } from './redaction.ts'

/** Some hours of a quiet node. */
const LOG_LINES_MAX = 1_000
const UNIT = 'undernet'

type Part = { name: string; text: string }

export function addBugreport(line: CommandLine): void {
  const command = line
    .command({
      usage: 'bugreport [file]',
      summary: 'write a report for somebody who helps: status, doctor, configuration, log, metrics, without secrets',
      details:
        'Ids and names of peers, networks and services become pseudonyms, and of addresses only the beginning stays. Look into it before you send it: tar xzf FILE.',
      examples: [
        ['bugreport', 'undernet-report-DATE.tar.gz in this directory'],
        ['bugreport /tmp/report.tar.gz --with-names', 'with ids and names, for somebody who knows them'],
      ],
    })
    .option('--with-names', 'do not replace ids and names')
  line.asks<[string | undefined], { withNames?: boolean }>(
    command,
    async ({ client, terminal, isJson }, { withNames = false }, named) => {
      const now = new Date()
      const file = named ?? `undernet-report-${now.toISOString().slice(0, 10)}.tar.gz`
      const parts = await gather(client, withNames)
      await write(file, parts, now.getTime())
      const names = parts.map(({ name }) => name)
      if (isJson) return terminal.json({ file, parts: names })
      terminal.print(`${file} has ${names.join(', ')}.`)
      terminal.note('Look into it before you send it: a text in the log may say what no rule foresaw.')
    },
  )
}

async function gather(client: Client, withNames: boolean): Promise<Part[]> {
  const { allChecks } = await import('./doctor.ts')
  const status = await client.get<Status>('status').catch(saying)
  const config = await client.get<ConfigView>('config').catch(localConfig)
  const metrics = await client.get<{ text: string }>('metrics').catch(saying)
  const redaction = new Redaction({ names: await namesIn(client, status), withNames, home: homedir() })
  const json = (name: string, value: unknown): Part => ({
    name,
    text: `${JSON.stringify(redaction.json(value), undefined, 2)}\n`,
  })
  return [
    json('report.json', await aboutMachine()),
    json('status.json', status),
    json('doctor.json', await allChecks({ client }).catch(saying)),
    json('config.json', config),
    { name: 'metrics.txt', text: redaction.text('text' in metrics ? metrics.text : `${metrics.error}\n`) },
    { name: 'log.txt', text: redaction.text(await logText()) },
  ]
}

function saying(error: unknown): { error: string } {
  return { error: reasonOf(error) }
}

async function localConfig(): Promise<object> {
  const { loadConfig } = await import('../config/config.ts')
  try {
    const { file, entries } = loadConfig({ env: filesEnvironment(process.env) })
    return { file, entries }
  } catch (error) {
    return saying(error)
  }
}

/** All that could be a name of somebody or something. */
async function namesIn(client: Client, status: Status | { error: string }): Promise<Named[]> {
  const host = hostname()
  const machine: Named[] = [host, host.split('.')[0] ?? host, thisMachine.user()].map((name) => ({
    kind: 'node',
    name,
  }))
  if ('error' in status) return machine.filter(isTelling)
  const closed = status.networks.filter(({ kind }) => kind === 'closed')
  const lists = await Promise.all(
    closed.map(({ id }) => client.get<MemberList>('members', { network: id }).catch(() => undefined)),
  )
  const members = lists.flatMap((list) => list?.members ?? [])
  const nodes = [status.name, ...status.peers.map(({ name }) => name), ...members.map(({ name }) => name)]
  const named = (kind: Named['kind'], names: readonly (string | null)[]) =>
    names.flatMap((name): Named[] => (name === null ? [] : [{ kind, name }]))
  return [
    ...named('node', [...nodes, ...status.instances.map(({ node }) => node)]),
    ...named(
      'network',
      closed.map(({ name }) => name),
    ),
    ...named('service', [
      ...status.services.map(({ name }) => name),
      ...status.instances.map(({ service }) => service),
    ]),
    ...machine,
  ].filter(isTelling)
}

/** root and localhost are everybody's. */
function isTelling({ name }: Named): boolean {
  return !['root', 'localhost', 'undernet', ''].includes(name)
}

async function aboutMachine(): Promise<object> {
  const { SCHEMA_VERSIONS } = await import('../state/schema.ts')
  const [, distribution] = /^PRETTY_NAME="?([^"\n]*)/m.exec(thisMachine.read('/etc/os-release') ?? '') ?? []
  return {
    version: VERSION,
    node: process.versions.node,
    system: `${systemName()} ${release()} ${process.arch}`,
    distribution: distribution ?? null,
    memoryBytes: totalmem(),
    systemd: firstLine(await thisMachine.run('systemctl', ['--version'])),
    nix: firstLine(await thisMachine.run('nix', ['--version'])),
    schema: SCHEMA_VERSIONS,
  }
}

function firstLine(text: string | null | undefined): string | null {
  return text?.split('\n', 1)[0] ?? null
}

async function logText(): Promise<string> {
  const args = ['--unit', UNIT, '--lines', String(LOG_LINES_MAX), '--no-pager', '--output', 'short-iso']
  const text = await thisMachine.run('journalctl', args)
  if (text !== undefined && text !== null && !text.startsWith('-- No entries')) return text
  return 'The journal has nothing of the service. An agent that a person started logs to where it was started.\n'
}

/** For its owner only, and never over another file. */
async function write(file: string, parts: readonly Part[], madeMs: number): Promise<void> {
  const { writeTar } = await import('../tar.ts')
  const out = await open(file, 'wx', 0o600).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code !== 'EEXIST') throw cause
    throw new AgentError('taken', `${file} exists`, { next: 'Give another file.' })
  })
  const files = parts.map(({ name, text }) => {
    const bytes = Buffer.from(text)
    return { name, sizeBytes: bytes.byteLength, bytes: [bytes] }
  })
  await pipeline(Readable.from(writeTar(files, madeMs)), createGzip(), out.createWriteStream())
}
