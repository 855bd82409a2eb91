/**
 * The command line's frame: what every command has in common. A command is declared with its summary and examples, gets the client and
 * the terminal, and throws; here that becomes a message with the next step, and the exit status of the contract.
 *
 * Exit status: 0 done, 1 failed, 2 usage, 3 the agent is not running, 4 not allowed, 5 not found, 130 interrupted.
 */
import { type Argument, Command, CommanderError } from 'commander'
import { Client } from '../api/client.ts'
import { AgentError, type AgentErrorCode, reasonOf } from '../error.ts'
import { printable, printableJson } from '../printable.ts'
import { socketCandidates } from './find-socket.ts'
import { Interrupted, Interruption } from './interruption.ts'
import { Terminal } from './terminal.ts'

const EXIT: Partial<Record<AgentErrorCode, number>> = { usage: 2, 'not-running': 3, 'not-allowed': 4, 'not-found': 5 }
/** As a shell reports a process that SIGINT ended. */
const EXIT_INTERRUPTED = 130

/** Longer lines are hard to read. */
const HELP_COLUMNS = 100
const FIRST_STEPS = `
First steps:
  agent start              in one terminal, on each of your machines
  agent status             is this node well, and whom does it see
  agent publish ./result   share a store path, a folder or a file
  agent search             what is shared, here and elsewhere
  agent network create     a network of your own machines; agent invite lets others in`

/** The option of commands that are about one network. */
export const IN_NETWORK = ['--network <name>', 'the network, by its name or the beginning of its id'] as const

/** One command's run. */
export type Session = {
  client: Client
  terminal: Terminal
  isJson: boolean
  /** Fires on Ctrl-C; only commands that tidy up use it, the others just end. */
  interrupted(): AbortSignal
}

export type CommandSpec = {
  /** With its arguments: `get <ref>`. */
  usage: string
  summary: string
  /** Below the summary in --help, where that is not all there is to say. */
  details?: string
  /** Without the leading `agent`, each with what it does. */
  examples: readonly (readonly [string, string])[]
  /** Commands of a noun: `trust add`. */
  parent?: Command
}

/** What a command does. */
export type Work<Options, Arguments extends unknown[]> = (
  session: Session,
  options: Options,
  ...args: Arguments
) => Promise<void>

export type AddCommand = (line: CommandLine) => void

export class CommandLine {
  readonly program: Command
  readonly terminal: Terminal
  /** Of each command, for the reference and for tests that run them. */
  readonly examples = new Map<Command, CommandSpec['examples']>()
  #isJson = false
  #status = 0

  constructor(commands: readonly AddCommand[], terminal = new Terminal()) {
    this.terminal = terminal
    this.program = new Command('agent')
      .description('Share Nix paths and files between your machines, with no server in the middle.')
      .configureHelp({ helpWidth: Math.min(terminal.columns ?? HELP_COLUMNS, HELP_COLUMNS), subcommandTerm })
      .configureOutput({
        writeOut: (text) => terminal.print(text.trimEnd()),
        writeErr: (text) => terminal.note(text.trimEnd()),
      })
      .exitOverride()
      .showSuggestionAfterError()
      .helpCommand('help [command]', 'what a command does, with examples')
      .addHelpText('after', FIRST_STEPS)
    for (const add of commands) add(this)
  }

  /** Declares a command; `act` gets what the caller typed. */
  command(spec: CommandSpec): Command {
    const { usage, summary, details, examples, parent = this.program } = spec
    const command = parent
      .command(usage)
      .summary(summary)
      .description(details ? `${sentence(summary)} ${details}` : sentence(summary))
      .exitOverride()
      .helpCommand(false)
      .addHelpText('after', exampleText(examples))
      .showHelpAfterError(`Run \`${[parent.name(), usage.split(' ')[0]].join(' ')} --help\` for how it is used.`)
    this.examples.set(command, examples)
    return command
  }

  /** Gives a command the options of all that ask the agent, and its work. */
  asks<Arguments extends unknown[], Options extends object = object>(
    command: Command,
    work: Work<Options, Arguments>,
  ): void {
    command
      .option('--json', 'print JSON, for scripts')
      .option('--socket <path>', 'the agent to ask')
      .action(async (...given: unknown[]) => {
        const { json = false, socket, ...options } = command.opts<{ json?: boolean; socket?: string }>()
        this.#isJson = json
        using interruption = new Interruption()
        const session: Session = {
          client: new Client(async () => (socket === undefined ? await socketCandidates() : [socket])),
          terminal: this.terminal,
          isJson: json,
          interrupted: () => interruption.begin(),
        }
        // Commander adds its options and itself to the arguments.
        await work(session, options as Options, ...(given.slice(0, -2) as Arguments))
      })
  }

  /** The exit status of a command that has said itself what is wrong. */
  endWith(status: number): void {
    this.#status = status
  }

  /** Runs what was typed; the result is the exit status. Nothing is thrown but faults of the agent itself. */
  async run(words: readonly string[]): Promise<number> {
    try {
      await this.program.parseAsync(words, { from: 'user' })
      return this.#status
    } catch (error) {
      if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
      return this.#report(error)
    }
  }

  #report(error: unknown): number {
    if (error instanceof Interrupted) {
      if (error.message) this.terminal.note(error.message)
      return EXIT_INTERRUPTED
    }
    const { code, message, next } = explained(error)
    if (this.#isJson) {
      this.terminal.note(printableJson({ error: { code, message, ...(next && { next }) } }))
    } else {
      const [first = '', ...more] = message.split('\n').map(printable)
      this.terminal.note(
        `${this.terminal.styleNote(['red', 'bold'], 'agent:')} ${first}`,
        ...more.map((line) => `       ${line}`),
      )
      if (next) this.terminal.note(`       ${printable(next)}`)
    }
    return EXIT[code] ?? 1
  }
}

type Explained = { code: AgentErrorCode; message: string; next?: string | undefined }

/** Errors of the file system are the user's to mend; what is left is a fault of ours, and shows where. */
function explained(error: unknown): Explained {
  if (error instanceof AgentError) return { code: error.code, message: error.message, next: error.next }
  const { code, syscall, path } = error as NodeJS.ErrnoException
  if (syscall !== undefined && code !== undefined) {
    const message = path === undefined ? reasonOf(error) : `${path}: ${SYSTEM_ERRORS[code]?.says ?? reasonOf(error)}`
    return { code: SYSTEM_ERRORS[code]?.code ?? 'failed', message, next: SYSTEM_ERRORS[code]?.next }
  }
  const where = error instanceof Error ? (error.stack ?? '').split('\n').slice(1, 6).join('\n') : ''
  return {
    code: 'failed',
    message: `${reasonOf(error)}\n${where}`.trimEnd(),
    next: 'This is a fault of the agent: please report it with these lines.',
  }
}

const SYSTEM_ERRORS: Record<string, { code: AgentErrorCode; says: string; next?: string }> = {
  ENOENT: { code: 'not-found', says: 'there is no such file or directory', next: 'Check the path.' },
  EACCES: {
    code: 'not-allowed',
    says: 'this user may not',
    next: 'Check its permissions, or run the command as its owner.',
  },
  EPERM: {
    code: 'not-allowed',
    says: 'this user may not',
    next: 'Check its permissions, or run the command as its owner.',
  },
  EROFS: { code: 'not-allowed', says: 'the file system is read-only', next: 'Choose another directory.' },
  ENOSPC: { code: 'limit', says: 'the disk is full', next: 'Make room, and run the command again.' },
  EDQUOT: { code: 'limit', says: 'the disk quota is used up', next: 'Make room, and run the command again.' },
  EISDIR: { code: 'usage', says: 'it is a directory' },
  ENOTDIR: { code: 'usage', says: 'part of the path is not a directory' },
}

/** `get <ref>`: that a command has options goes without saying. */
function subcommandTerm(command: Command): string {
  return [command.name(), ...command.registeredArguments.map(argumentTerm)].join(' ')
}

function argumentTerm(argument: Argument): string {
  const name = `${argument.name()}${argument.variadic ? '...' : ''}`
  return argument.required ? `<${name}>` : `[${name}]`
}

function sentence(summary: string): string {
  return `${summary.charAt(0).toUpperCase()}${summary.slice(1)}.`
}

function exampleText(examples: CommandSpec['examples']): string {
  const width = Math.max(...examples.map(([typed]) => typed.length))
  return ['', 'Examples:', ...examples.map(([typed, does]) => `  agent ${typed.padEnd(width)}  ${does}`)].join('\n')
}
