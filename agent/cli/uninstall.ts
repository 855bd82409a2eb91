/** `agent uninstall`: takes away what `agent install` put on this machine, and nothing else. */
import { rmSync } from 'node:fs'
import { AgentError } from '../error.ts'
import type { Command } from '../install/machine.ts'
import type { Manifest, Part } from '../install/manifest.ts'
import type { Root } from '../install/root.ts'
import type { Undoing } from '../install/undo.ts'
import { agreed } from './agreement.ts'
import { doneLine, planLines, shownUndoing } from './changes.ts'
import type { CommandLine, Session } from './command-line.ts'

type Options = { dryRun?: boolean; root?: string; purge?: boolean } & { [part in Exclude<Part, 'agent'>]?: boolean }

export function addUninstall(line: CommandLine): void {
  const command = line.command({
    usage: 'uninstall',
    summary: 'take away what `agent install` put on this machine',
    details:
      'What you changed since stays, and is named. The state of the agent stays too (its identity, networks and content), unless --purge is given.',
    examples: [
      ['uninstall --dry-run', 'what would go, and what would stay'],
      ['uninstall', 'everything but the state'],
      ['uninstall --nix', 'only the lines of nix.conf'],
      ['uninstall --purge', 'the state as well: this node is then no more'],
    ],
  })
  command
    .option('--dry-run', 'change nothing, show everything')
    .option('--nix', 'only what was added to nix.conf')
    .option('--containers', 'only what podman and containerd were given')
    .option('--dns', 'only what systemd-resolved was given')
    .option('--purge', 'also its state, its configuration and its user')
    .option('--root <directory>', 'from a directory that will be a machine')
  line.asks<[], Options>(command, async (session, options) => uninstall(session, options))
}

async function uninstall(session: Session, options: Options): Promise<void> {
  const [{ Root }, { Manifest, PARTS }, machine, undo, service] = await Promise.all([
    import('../install/root.ts'),
    import('../install/manifest.ts'),
    import('../install/machine.ts'),
    import('../install/undo.ts'),
    import('../install/service.ts'),
  ])
  const { dryRun: isDryRun = false, purge: isPurge = false } = options
  const root = new Root(options.root)
  const named = PARTS.filter((part) => part !== 'agent' && options[part])
  if (named.length > 0 && isPurge)
    throw new AgentError('usage', `--purge is for the whole agent, not for --${named[0]}`)
  const parts = named.length > 0 ? named : PARTS
  machine.checkMachine(root, isDryRun)
  // The state may be a package's.
  if (isPurge) machine.checkOwner(root)
  using _lock = isDryRun ? undefined : await machine.lockInstallation(root)
  const manifest = Manifest.load(root)
  const undoing = undo.planUndo(root, manifest, parts, isPurge)
  const isWhole = parts === PARTS
  const state = isWhole ? service.stateDirectories(root) : []
  const hasUser = isWhole && manifest.entries.some(({ kind }) => kind === 'user')
  if (undoing.length === 0 && !(isPurge && (hasUser || state.length > 0))) {
    if (session.isJson) return session.terminal.json({ changes: [], commands: [], kept: state })
    const what = named.map((part) => ` --${part}`).join('')
    session.terminal.print(
      `Nothing to take away: \`agent install${what}\` has put nothing here, or it is gone already.`,
    )
    return
  }
  const commands = await commandsAfter(undoing)
  if (!isDryRun) {
    machine.checkWritable(
      root,
      undoing.map(({ entry }) => entry.path),
    )
    const question = `This removes the identity of this node, its networks and content (${state.join(', ')}). Go on?`
    await agreed(session, !isPurge || state.length === 0, question)
    await takeAway({ session, root, manifest, undoing, commands, parts, isPurge, isWhole, state })
  } else if (!session.isJson) session.terminal.print(...planLines(shownUndoing(undoing), commands))
  tell(session, { undoing, commands, state, isPurge, isWhole, isDryRun })
}

type Work = {
  session: Session
  root: Root
  manifest: Manifest
  undoing: readonly Undoing[]
  commands: readonly Command[]
  parts: readonly Part[]
  isPurge: boolean
  isWhole: boolean
  state: readonly string[]
}

async function takeAway(work: Work): Promise<void> {
  const { session, root, manifest, undoing, commands, parts, isPurge, isWhole, state } = work
  // All that is needed is loaded before the program itself goes.
  const [{ runCommand: run }, undo, service] = await Promise.all([
    import('../install/machine.ts'),
    import('../install/undo.ts'),
    import('../install/service.ts'),
  ])
  if (isWhole) await service.stopService(root, run)
  for (const one of undoing) {
    undo.applyUndo(one, root, manifest)
    if (!session.isJson) for (const shown of shownUndoing([one])) session.terminal.print(doneLine(shown))
  }
  for (const command of commands) {
    const { status, output } = await run(command)
    if (status !== 0) session.terminal.note(`agent: ${command.join(' ')} failed: ${output}`, '       Run it yourself.')
  }
  if (isWhole) {
    await service.forgetService(root, run)
    if (isPurge) for (const path of state) rmSync(root.at(path), { recursive: true, force: true })
    // What is left of the state belongs to it.
    if (service.stateDirectories(root).length === 0) await service.removeUser(root, run, manifest)
  }
  if (isPurge) for (const { entry } of undoing) manifest.forget(entry.path)
  undo.removeDirectories(root, manifest, parts)
  if (manifest.entries.some(({ kind }) => kind !== 'directory')) return manifest.finish()
  const left = manifest.entries.map(({ path }) => path).toReversed()
  manifest.remove()
  undo.removeLastDirectories(root, left)
}

async function commandsAfter(undoing: readonly Undoing[]): Promise<Command[]> {
  const { commandsFor } = await import('../install/programs.ts')
  return commandsFor(
    undoing.filter(({ action }) => action !== 'keep' && action !== 'gone').map(({ entry }) => entry.path),
  )
}

function tell(
  { terminal, isJson }: Session,
  {
    undoing,
    commands,
    state,
    isPurge,
    isWhole,
    isDryRun,
  }: Pick<Work, 'undoing' | 'commands' | 'state' | 'isPurge' | 'isWhole'> & { isDryRun: boolean },
): void {
  const kept = isPurge ? [] : state
  if (isJson) {
    const changes = shownUndoing(undoing).map(({ action, path, note }) => ({ action, path, ...(note && { note }) }))
    terminal.json({ changes, commands: commands.map((command) => command.join(' ')), kept })
  } else if (kept.length > 0)
    terminal.print(
      `${isDryRun ? 'Would stay' : 'Kept'}: ${kept.join(', ')} (this node’s identity, networks and content), and the user undernet.`,
      isDryRun
        ? 'With --purge they would go, too.'
        : `To remove them as well: sudo rm -r ${kept.join(' ')}; sudo userdel undernet`,
    )
  else if (!isDryRun && isWhole) terminal.print('Nothing of the agent is left.')
}
