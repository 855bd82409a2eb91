/** agent(1), made from the commands themselves: what each says with --help. */
import { PassThrough } from 'node:stream'
import type { Command } from 'commander'
import { CommandLine } from '../../agent/cli/command-line.ts'
import { commands } from '../../agent/cli/commands.ts'
import { Terminal } from '../../agent/cli/terminal.ts'
import { SERVICE_CONFIG, SERVICE_SOCKET } from '../../agent/config/paths.ts'

/** What man shows without breaking a line. */
const COLUMNS = 78

export function manPage(version: string, date: string): string {
  const out = Object.assign(new PassThrough(), { isTTY: true, columns: COLUMNS })
  const { program } = new CommandLine(commands, new Terminal(out, out))
  const helpOf = (command: Command) => {
    command.outputHelp()
    return String(out.read()).trimEnd()
  }
  const sections = visible(program).map((command) => `.SS ${escaped(fullName(command))}\n${verbatim(helpOf(command))}`)
  return `.TH AGENT 1 ${date} "undernet ${version}" "User Commands"
.SH NAME
agent \\- ${escaped(program.description().replace(/\.$/, ''))}
.SH SYNOPSIS
${verbatim('agent COMMAND [OPTIONS]\nagent COMMAND --help')}
.SH DESCRIPTION
${verbatim(helpOf(program))}
.SH COMMANDS
${sections.join('\n')}
.SH EXIT STATUS
0 done, 1 failed, 2 usage, 3 the agent is not running, 4 not allowed, 5 not found, 130 interrupted.
.SH FILES
${verbatim(`${SERVICE_CONFIG}    configuration of the service\n${SERVICE_SOCKET}   where commands reach it\n/var/lib/undernet           its key, database and content`)}
`
}

/** Every command that does something, nouns before their verbs. */
function visible(command: Command): Command[] {
  const shown = command
    .createHelp()
    .visibleCommands(command)
    .filter((one) => one.name() !== 'help')
  return shown.flatMap((one) => [one, ...visible(one)])
}

function fullName(command: Command): string {
  return command.parent === null ? command.name() : `${fullName(command.parent)} ${command.name()}`
}

function verbatim(text: string): string {
  return `.nf\n${text.split('\n').map(escaped).join('\n')}\n.fi`
}

/** Nothing of it is for troff. */
function escaped(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replace(/^([.'])/, '\\&$1')
}
