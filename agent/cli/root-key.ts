/**
 * `agent network export-root`, `import-root`, `restore`, `remove-root`, `delegate`: where a network's root key is, and who may act in its stead. The
 * exported key is an age file: any age tool opens it with the passphrase.
 */

import { open, rm } from 'node:fs/promises'
import type { Command } from 'commander'
import type { DelegationView, ExportedRoot, NetworkDetail, Right } from '../api/membership-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import { agreed } from './agreement.ts'
import type { CommandLine } from './command-line.ts'
import { collect, readLabelLists, readNamePattern } from './labels.ts'
import { endingOf } from './lifetime.ts'
import { readCount } from './measures.ts'
import { networkNamed, networkPath } from './network-named.ts'
import { knownPassphrase, newPassphrase, PASSPHRASE_FILE } from './passphrase.ts'
import type { Terminal } from './terminal.ts'
import { readText } from './text-input.ts'

/** An age file with one key is some 500 bytes. */
const ARMORED_BYTES_MAX = 16 * 1024
const RIGHTS: readonly Right[] = ['issue', 'revoke', 'policy']
const DAYS_DEFAULT = 90
const DAYS_MAX = 3_650

export function addRootKey(line: CommandLine, parent: Command): void {
  addExport(line, parent)
  addImport(line, parent)
  addRestore(line, parent)
  addRemove(line, parent)
  addDelegate(line, parent)
}

function addExport(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'export-root <network>',
      summary: 'write the root key to a file, encrypted with a passphrase',
      details:
        'The file is an age file (age-encryption.org): keep it off this machine, and the passphrase apart from it. Who has both is the network.',
      examples: [
        ['network export-root home --to home-root.age', 'asks for a passphrase, twice'],
        ['network export-root home --to - --passphrase-file pass | ssh vault "cat > home-root.age"', 'for scripts'],
      ],
    })
    .requiredOption('--to <file>', 'a new file; - is standard output')
    .option(...PASSPHRASE_FILE)
  type Options = { to: string; passphraseFile?: string }
  line.asks<[string], Options>(command, async ({ client, terminal, isJson }, { to, passphraseFile }, named) => {
    const { id, name } = await networkNamed(client, named)
    const asked = async () => {
      const passphrase = await newPassphrase(terminal, passphraseFile)
      const { armored } = await client.post<ExportedRoot>(`${networkPath(id)}/root/export`, { passphrase })
      return armored
    }
    if (to === '-') return terminal.print((await asked()).trimEnd())
    await writeNew(to, asked)
    if (isJson) return terminal.json({ network: name, file: to })
    const shown = printable(name)
    terminal.print(`The root key of ${shown} is in ${to}.`)
    terminal.note(
      'Try the file before you rely on it (age --decrypt), keep it elsewhere, and then remove the key from here:',
      `  agent network remove-root ${shown}`,
    )
  })
}

function addImport(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'import-root <network> <file>',
      summary: 'put an exported root key back on this machine',
      details: 'For what only the root key can do, such as delegating; remove it again afterwards.',
      examples: [
        ['network import-root home home-root.age', 'asks for the passphrase'],
        ['network import-root home - --passphrase-file pass < home-root.age', 'for scripts'],
      ],
    })
    .option(...PASSPHRASE_FILE)
  type Options = { passphraseFile?: string }
  line.asks<[string, string], Options>(
    command,
    async ({ client, terminal, isJson }, { passphraseFile }, named, file) => {
      const exported = await readExported(terminal, file, passphraseFile)
      const { id } = await networkNamed(client, named)
      const network = await client.post<NetworkDetail>(`${networkPath(id)}/root/import`, exported)
      if (isJson) terminal.json(network)
      else terminal.print(`The root key of ${printable(network.name)} is on this machine again.`)
    },
  )
}

function addRestore(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'restore <file>',
      summary: 'come into a network with nothing but its exported root key',
      details: 'The way back when every machine that could invite is lost. The root key is on this machine afterwards.',
      examples: [['network restore home-root.age --as gate', 'asks for the passphrase']],
    })
    .option('--as <name>', "what this machine is called there; otherwise the node's name")
    .option(...PASSPHRASE_FILE)
  type Options = { as?: string; passphraseFile?: string }
  line.asks<[string], Options>(command, async ({ client, terminal, isJson }, { as, passphraseFile }, file) => {
    const exported = await readExported(terminal, file, passphraseFile)
    const network = await client.post<NetworkDetail>('networks/restore', { ...exported, ...(as && { as }) })
    if (isJson) return terminal.json(network)
    terminal.print(`This machine is ${printable(network.member.name)} in network ${printable(network.name)}.`)
  })
}

async function readExported(terminal: Terminal, file: string, passphraseFile: string | undefined) {
  if (file === '-' && passphraseFile === undefined)
    throw new AgentError('usage', 'standard input cannot be both the key and the passphrase', {
      next: 'Give --passphrase-file FILE.',
    })
  const armored = await readText(file, terminal, ARMORED_BYTES_MAX)
  return { armored, passphrase: await knownPassphrase(terminal, passphraseFile) }
}

function addRemove(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'remove-root <network>',
      summary: 'remove the root key from this machine, once it was exported',
      details:
        'Without it this machine can do what was delegated to it before, and nothing more: delegate first, also to this machine itself.',
      examples: [['network remove-root home', 'asks first, on a terminal']],
    })
    .option('-y, --yes', 'do not ask')
  line.asks<[string], { yes?: boolean }>(command, async (session, { yes = false }, named) => {
    const { client, terminal, isJson } = session
    const { id, name } = await networkNamed(client, named)
    await agreed(
      session,
      yes,
      `Remove the root key of ${printable(name)} from this machine? The exported file is then the only copy.`,
    )
    const network = await client.post<NetworkDetail>(`${networkPath(id)}/root/remove`, {})
    if (isJson) return terminal.json(network)
    terminal.print(`The root key of ${printable(network.name)} is no longer on this machine.`)
    const may = network.may.join(', ')
    terminal.print(
      may === '' ? 'Nothing was delegated to it: it can no longer invite or revoke.' : `It may still: ${may}.`,
    )
  })
}

type DelegateOptions = { may: string; names?: string[]; labels?: string[]; days: string }

function addDelegate(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'delegate <network> <member>',
      summary: 'let a member invite, revoke, or set the policy, until a day',
      details: 'Needs the root key. A later delegation to the same member takes the place of an earlier one.',
      examples: [
        ['network delegate home gate', 'gate may invite, for 90 days'],
        ['network delegate home gate --may issue,revoke,policy --days 365', 'whatever can be delegated'],
        ["network delegate home builder --names 'ci-*' --labels role=ci", 'only machines of one kind'],
      ],
    })
    .option('--may <rights>', `of ${RIGHTS.join(', ')}, with commas`, 'issue')
    .option('--names <pattern>', 'only names that fit, such as ci-*; repeatable', collect)
    .option('--labels <k=v>', 'only these labels, k=* for any value; repeatable', collect)
    .option('--days <number>', 'for so long', String(DAYS_DEFAULT))
  line.asks<[string, string], DelegateOptions>(
    command,
    async ({ client, terminal, isJson }, options, named, member) => {
      const request = {
        member,
        may: readRights(options.may),
        days: readCount(options.days, '--days', { min: 1, max: DAYS_MAX }),
        ...(options.names && { names: options.names.map((one) => readNamePattern(one, '--names')) }),
        ...(options.labels && { labels: readLabelLists(options.labels) }),
      }
      const { id } = await networkNamed(client, named)
      const made = await client.post<DelegationView>(`${networkPath(id)}/delegate`, request)
      if (isJson) return terminal.json(made)
      const who = printable(made.name ?? made.peerId)
      terminal.print(
        `${who} may ${made.may.join(', ')} in ${printable(made.network)}; this ends ${endingOf(made, Date.now()).text}.`,
      )
      const limits = [...(made.names ?? []), ...limitsOf(made)]
      if (limits.length > 0) terminal.print(`  only: ${printable(limits.join(', '))}`)
    },
  )
}

function limitsOf({ labels = {} }: DelegationView): string[] {
  return Object.entries(labels).flatMap(([key, values]) => values.map((value) => `${key}=${value}`))
}

function readRights(text: string): Right[] {
  const words = [...new Set(text.split(',').map((word) => word.trim()))]
  const rights = RIGHTS.filter((right) => words.includes(right))
  const unknown = words.filter((word) => !(RIGHTS as readonly string[]).includes(word))
  if (unknown.length === 0) return rights
  throw new AgentError('usage', `--may: ${JSON.stringify(unknown[0])} is no right`, {
    next: `There are ${RIGHTS.join(', ')}.`,
  })
}

/**
 * Makes the file before there is anything to write: once the agent has exported the key it lets it be removed, and by then the file must
 * not fail.
 */
async function writeNew(path: string, make: () => Promise<string>): Promise<void> {
  const file = await open(path, 'wx', 0o600).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
    throw new AgentError('taken', `${path} exists`, { next: 'Nothing is overwritten: choose another file.' })
  })
  try {
    await file.writeFile(await make())
    await file.sync()
    await file.close()
  } catch (error) {
    await file.close().catch(() => undefined)
    await rm(path, { force: true })
    throw error
  }
}
