/**
 * `agent install`: makes the agent a service of this machine, and, where that is wished, other programs use it. What it does is shown first with
 * --dry-run; what it did is written down, and taken away by `agent uninstall`.
 */
import { Client } from '../api/client.ts'
import type { Status } from '../api/contract.ts'
import { SERVICE_CONFIG, SERVICE_SOCKET } from '../config/paths.ts'
import { AgentError } from '../error.ts'
import type { Step } from '../install/change.ts'
import type { Command } from '../install/machine.ts'
import type { Manifest, Part } from '../install/manifest.ts'
import type { OtherPart } from '../install/programs.ts'
import type { Root } from '../install/root.ts'
import { doneLine, planLines, shownSteps } from './changes.ts'
import type { CommandLine, Session } from './command-line.ts'
import { completionScript } from './completion.ts'
import { statusScreen } from './status.ts'

type Options = { dryRun?: boolean; root?: string; force?: boolean } & { [part in OtherPart]?: boolean }

const QUESTIONS: Record<OtherPart, string> = {
  nix: 'Nix would then ask the agent for what it needs, and trust its key. Do this?',
  containers: 'Images would then be pulled through the agent. Do this?',
  dns: 'Programs would then find services by their names. Do this?',
}
const MORE: Record<OtherPart, string> = {
  nix: 'sudo agent install --nix',
  containers: 'sudo agent install --containers',
  dns: 'sudo agent install --dns',
}

export function addInstall(line: CommandLine): void {
  const command = line.command({
    usage: 'install',
    summary: 'make the agent a service of this machine, under systemd',
    details:
      'Puts the program, its unit, its user, its configuration and completions into their places, starts it, and waits until it answers. Run again, it changes what is not as it should be, and nothing else.',
    examples: [
      ['install --dry-run', 'what it would do, file by file'],
      ['install', 'do it (as root); asks whether Nix and others shall use the agent'],
      ['install --nix --containers --dns', 'the same without questions'],
      ['install --root /mnt', 'into an image that is mounted there'],
    ],
  })
  command
    .option('--dry-run', 'change nothing, show everything')
    .option('--nix', 'add the agent to nix.conf')
    .option('--containers', 'let podman and containerd pull through the agent')
    .option('--dns', 'let systemd-resolved ask the agent for names of services')
    .option('--force', 'replace files that are in the way, and keep copies of them')
    .option('--root <directory>', 'install into a directory that will be a machine')
  line.asks<[], Options>(command, async (session, options) => install(line, session, options))
}

/** One run. */
type Work = {
  session: Session
  options: Options
  root: Root
  manifest: Manifest
  client: Client
  steps: Step[]
  commands: Command[]
}

async function install(line: CommandLine, session: Session, options: Options): Promise<void> {
  const [{ agentFiles, SHELLS }, { runningProgram }, { Root }, { Manifest }, machine, service, change] =
    await Promise.all([
      import('../install/layout.ts'),
      import('../install/program.ts'),
      import('../install/root.ts'),
      import('../install/manifest.ts'),
      import('../install/machine.ts'),
      import('../install/service.ts'),
      import('../install/change.ts'),
    ])
  const { runCommand: run } = machine
  const { dryRun: isDryRun = false, force = false } = options
  const root = new Root(options.root)
  const asked = await askedParts(options, root)
  const systemdVersion = await machine.systemdVersion(run)
  machine.checkOwner(root)
  machine.checkMachine(root, isDryRun)
  const completion = (shell: (typeof SHELLS)[number]) => completionScript(shell, line.program)
  const wanted = agentFiles({ program: runningProgram(), root, systemdVersion, completion })
  if (!isDryRun)
    machine.checkWritable(
      root,
      wanted.map(({ path }) => path),
    )
  using _lock = isDryRun ? undefined : await machine.lockInstallation(root)
  const manifest = Manifest.load(root)
  const steps = change.planChanges(wanted, root, manifest, force)
  const state = await service.serviceState(root, run)
  const hasUser = service.hasUser(root)
  const commands = service.startCommands(steps, { root, hasUser, isUnfinished: manifest.isUnfinished, state })
  const client = new Client(async () => [await serviceSocket()])
  const work: Work = { session, options, root, manifest, client, steps, commands }
  const say = (...lines: string[]) => session.isJson || session.terminal.print(...lines)

  if (isDryRun) {
    say(...planLines(shownSteps(steps), commands))
  } else {
    if (steps.some(({ action }) => action !== 'same' && action !== 'keep') || commands.length > 0) manifest.begin()
    for (const step of steps) {
      change.applyChange(step, root, manifest)
      for (const shown of shownSteps([step])) say(doneLine(shown))
    }
    if (!hasUser) manifest.record({ kind: 'user', path: 'undernet', part: 'agent' })
    for (const command of commands) {
      say(`${'run'.padEnd(8)} ${command.join(' ')}`)
      await service.runOnService(run, command)
    }
    for (const path of service.oldTrees(manifest, steps)) await removeTree(path, work)
  }
  if (root.isMachine) await installParts(asked, work)
  if (!isDryRun && manifest.isUnfinished) manifest.finish()
  await conclude(work)
}

/** Those that were named; what they get is what a running agent says. */
async function askedParts(options: Options, root: Root): Promise<OtherPart[]> {
  const { OTHER_PARTS } = await import('../install/programs.ts')
  const asked = OTHER_PARTS.filter((part) => options[part])
  if (asked.length > 0 && !root.isMachine)
    throw new AgentError('usage', `--${asked[0]} needs the agent’s key and addresses, which it has once it runs`, {
      next: `Install with --root alone; on the machine then: ${MORE[asked[0] as OtherPart]}`,
    })
  return asked
}

/** Those that were named or are there from before; on a terminal the others are shown, and asked for. */
async function installParts(asked: readonly OtherPart[], work: Work): Promise<void> {
  const { session, options, root, manifest } = work
  const { isHere, OTHER_PARTS } = await import('../install/programs.ts')
  const chosen = new Set<Part>([...asked, ...manifest.entries.map(({ part }) => part)])
  const canAsk = asked.length === 0 && !options.dryRun && !session.isJson && session.terminal.canAsk
  for (const part of OTHER_PARTS)
    if (chosen.has(part)) await installPart(part, work)
    else if (canAsk && isHere(part, root)) await installPart(part, work, QUESTIONS[part])
}

/** The lines for other programs, which are told; with a question, only if it is answered with yes. */
async function installPart(part: OtherPart, work: Work, question?: string): Promise<void> {
  const { session, options, root, manifest, client } = work
  const [{ commandsFor, filesOf }, change, machine] = await Promise.all([
    import('../install/programs.ts'),
    import('../install/change.ts'),
    import('../install/machine.ts'),
  ])
  const { terminal, isJson } = session
  let files: Awaited<ReturnType<typeof filesOf>>
  try {
    files = await filesOf(part, client, root)
  } catch (error) {
    if (!(error instanceof AgentError)) throw error
    // Nobody has to be in a network to install, and nobody asked.
    if (question === undefined)
      terminal.note(`agent: nothing for --${part}: ${error.message}`, `       ${error.next ?? ''} Then: ${MORE[part]}`)
    return
  }
  const planned = change.planChanges(files.wanted, root, manifest, options.force)
  const steps = options[part] ? planned : change.withoutTakenOut(planned, manifest)
  const changed = steps.filter(({ action }) => action !== 'same' && action !== 'keep').map(({ wanted }) => wanted.path)
  const commands = commandsFor(manifest.isUnfinished ? files.wanted.map(({ path }) => path) : changed)
  if (question !== undefined && changed.length === 0) return
  if (!isJson) terminal.print(...planLines(shownSteps(steps), commands))
  for (const note of files.notes) terminal.note(note)
  if (question !== undefined && !(await terminal.confirm(question))) return
  work.steps.push(...steps)
  work.commands.push(...commands)
  if (options.dryRun) return
  machine.checkWritable(root, changed)
  if (changed.length > 0) manifest.begin()
  for (const step of steps) change.applyChange(step, root, manifest)
  for (const command of commands) {
    const { status, output } = await machine.runCommand(command)
    if (status !== 0) terminal.note(`agent: ${command.join(' ')} failed: ${output}`, '       Run it yourself.')
  }
}

async function removeTree(path: string, { root, manifest }: Work): Promise<void> {
  const { applyUndo } = await import('../install/undo.ts')
  const entry = manifest.get(path)
  if (entry) applyUndo({ entry, action: 'remove' }, root, manifest)
}

/** What there is to say at the end: how the agent is. */
async function conclude({ session, options, root, client, steps, commands }: Work): Promise<void> {
  const { terminal, isJson } = session
  const shown = shownSteps(steps)
  const isNothing = shown.every(({ action }) => action === 'keep') && commands.length === 0
  const status = root.isMachine && !options.dryRun ? await client.get<Status>('status') : undefined
  if (isJson) {
    const changes = shown.map(({ action, path, note }) => ({ action, path, ...(note && { note }) }))
    const result = { changes, commands: commands.map((command) => command.join(' ')) }
    return terminal.json({ ...result, ...(status && { status }) })
  }
  if (isNothing) terminal.print('Nothing to change: everything is as it should be.')
  if (status === undefined) return
  terminal.print('', ...statusScreen(status, terminal))
  terminal.note('', `Members of the group undernet may use it: sudo usermod -aG undernet $USER (and log in again).`)
  terminal.note(`Its configuration is ${SERVICE_CONFIG}; its log: journalctl -u undernet`)
}

/** The configuration may have put it elsewhere. */
async function serviceSocket(): Promise<string> {
  const { socketInFile } = await import('../config/config.ts')
  return socketInFile(SERVICE_CONFIG) ?? SERVICE_SOCKET
}
