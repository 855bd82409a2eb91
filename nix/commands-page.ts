/** agent/reference/commands.md: every command with its arguments, options and examples, as the command line itself declares them. */
import type { Command, Option } from 'commander'
import { CommandLine } from '../agent/cli/command-line.ts'
import { commands } from '../agent/cli/commands.ts'

const HEAD = `# Commands

<!-- Made by \`npm run reference\` from agent/cli/. -->

Every command has \`--help\`. Those that ask the running agent have \`--json\` (for scripts; errors are JSON on stderr, too) and \`--socket <path>\`.
Exit status: 0 done, 1 failed, 2 usage, 3 the agent is not running, 4 not allowed, 5 not found, 130 interrupted.
`

/** Told once, above. */
const EVERYWHERE = ['--json', '--socket']

export function commandsPage(): string {
  const line = new CommandLine(commands)
  const all = line.program.commands.filter((command) => line.examples.has(command))
  const contents = all.map((command) => `[${command.name()}](#agent-${command.name()})`).join(' · ')
  return [HEAD, contents, '', ...all.flatMap((command) => section(line, command, []))].join('\n')
}

/** A command, and then those of its noun. */
function section(line: CommandLine, command: Command, parents: readonly string[]): string[] {
  const path = [...parents, command.name()]
  const children = command.commands.filter((child) => line.examples.has(child))
  const options = command.options.filter(({ long, hidden }) => !hidden && !EVERYWHERE.includes(long ?? ''))
  const examples = line.examples.get(command) ?? []
  const width = Math.max(...examples.map(([typed]) => typed.length))
  return [
    `${'#'.repeat(path.length + 1)} agent ${path.join(' ')}`,
    '',
    `\`agent ${[...path, ...argumentsOf(command)].join(' ')}${options.length > 0 ? ' [options]' : ''}\``,
    '',
    command.description(),
    '',
    ...(options.length === 0 ? [] : [...optionTable(options), '']),
    '```sh',
    ...examples.map(([typed, does]) => `agent ${typed.padEnd(width)}  # ${does}`),
    '```',
    '',
    ...children.flatMap((child) => section(line, child, path)),
  ]
}

function argumentsOf(command: Command): string[] {
  return command.registeredArguments.map((argument) => {
    const name = `${argument.name()}${argument.variadic ? '...' : ''}`
    return argument.required ? `<${name}>` : `[${name}]`
  })
}

function optionTable(options: readonly Option[]): string[] {
  return ['| option | what |', '|---|---|', ...options.map((one) => `| \`${one.flags}\` | ${cell(one.description)} |`)]
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|')
}
