/** `agent restore`: makes a node of a backup again, on this machine or on another one; or goes back to before an upgrade. */
import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { configFile, SERVICE_CONFIG, SERVICE_STATE } from '../config/paths.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { knownPassphrase, PASSPHRASE_FILE } from './passphrase.ts'
import type { Terminal } from './terminal.ts'

type Options = { state?: string; replace?: boolean; beforeUpgrade?: boolean; passphraseFile?: string }

export function addRestore(line: CommandLine): void {
  const command = line
    .command({
      usage: 'restore [file]',
      summary: 'make a node of a backup again; no agent may be running on its state',
      details:
        'The node has the same peer id, is a member of the same networks, and goes on with its records. Only one machine may be this node: never start the old one again. As root this is about the service, else about your own agent.',
      examples: [
        ['restore node.age', 'asks for the passphrase'],
        ['restore node.age --state /var/lib/undernet --passphrase-file pass', 'for scripts'],
        ['restore node.age --replace', 'what is there moves aside, and is not lost'],
        ['restore --before-upgrade', 'the databases as they were before the last upgrade, for an older agent'],
      ],
    })
    .option('--state <directory>', 'the state directory')
    .option('--replace', 'although there is a node already: it moves aside')
    .option('--before-upgrade', 'in place of a file: what was kept before the last upgrade')
    .option(...PASSPHRASE_FILE)
  line.asks<[string | undefined], Options>(command, async ({ terminal, isJson }, options, file) => {
    const isService = process.getuid?.() === 0 && options.state === undefined && existsSync(SERVICE_STATE)
    const directory = resolve(options.state ?? (isService ? SERVICE_STATE : await configuredState()))
    if ((file === undefined) !== (options.beforeUpgrade === true))
      throw new AgentError('usage', 'either a file or --before-upgrade has to be given')
    if (file === undefined) return await undo(directory, terminal, isJson)
    const { restoreBackup } = await import('../backup/restore.ts')
    const { manifest, replaced, config } = await restoreBackup({
      file,
      directory,
      passphrase: await knownPassphrase(terminal, options.passphraseFile),
      configFile: isService || directory === SERVICE_STATE ? SERVICE_CONFIG : configFile(process.env),
      replace: options.replace === true,
    })
    const { peerId, name, made } = manifest
    if (isJson)
      return terminal.json({ state: directory, peerId, name, made, replaced: replaced ?? null, config: config ?? null })
    terminal.print(`${printable(name)} (${peerId}) as of ${made} is in ${directory}.`)
    if (replaced !== undefined) terminal.print(`What was there is in ${replaced}.`)
    if (config !== undefined) terminal.print(`Its configuration is in ${config}.`)
    terminal.note(
      isService || directory === SERVICE_STATE
        ? 'Start it: systemctl start undernet. Never start the old one again: two nodes with one key contradict each other.'
        : 'Start it: agent start. Never start the old one again: two nodes with one key contradict each other.',
    )
  })
}

async function undo(directory: string, terminal: Terminal, isJson: boolean): Promise<void> {
  const { undoUpgrade } = await import('../backup/restore.ts')
  const { databases, replaced } = undoUpgrade(directory)
  if (isJson) return terminal.json({ state: directory, databases, replaced })
  terminal.print(`${databases.join(', ')} are as before the upgrade; what they were until now is in ${replaced}.`)
  terminal.note('Start the older agent now.')
}

async function configuredState(): Promise<string> {
  const { loadConfig } = await import('../config/config.ts')
  return loadConfig().values.state
}
