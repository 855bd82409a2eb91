/**
 * `agent completion SHELL`: a script that completes commands, flags and the names of artifacts. The script is made from the commands
 * themselves, so it knows exactly what this version has.
 */
import type { Command } from 'commander'
import type { SearchResult } from '../api/contract.ts'
import { AgentError } from '../error.ts'
import type { CommandLine } from './command-line.ts'

const SHELLS = { bash, zsh, fish } as const

/** Commands whose argument is an artifact. */
const TAKES_ARTIFACT = ['get', 'show', 'unpublish']
/**
 * Names of artifacts are written by peers, and shells evaluate word lists: what is not plainly a name is not offered.
 */
const SAFE_NAME = /^[0-9A-Za-z][0-9A-Za-z._+-]{0,127}$/
const NAMES_MAX = 500

export function addCompletion(line: CommandLine): void {
  line
    .command({
      usage: 'completion <shell>',
      summary: 'a script for bash, zsh or fish that completes commands, flags and names',
      examples: [
        ['completion bash > ~/.local/share/bash-completion/completions/agent', 'for new shells'],
        ['completion zsh > ~/.zfunc/_agent', 'a directory that is in fpath'],
        ['completion fish > ~/.config/fish/completions/agent.fish', 'for fish'],
      ],
    })
    .action((shell: string) => {
      const make = SHELLS[shell as keyof typeof SHELLS]
      if (make === undefined) {
        throw new AgentError('usage', `there is no completion for ${shell}`, { next: 'There is: bash, zsh, fish.' })
      }
      line.terminal.print(make(line.program))
    })

  // What the scripts call: names a line, and nothing at all when no agent runs.
  const names = line.program.command('complete-names', { hidden: true })
  line.asks(names, async ({ client, terminal }) => {
    const result = await client.get<SearchResult>('search', { limit: NAMES_MAX }).catch(() => undefined)
    const found = result?.artifacts.map(({ name }) => name).filter((name) => SAFE_NAME.test(name)) ?? []
    terminal.print(...new Set(found))
  })
}

type Entry = { words: string[]; summary: string; flags: { name: string; help: string }[]; children: string[] }

/** Each command with its words after `agent`, parents before children; hidden ones left out. */
function entriesOf(program: Command): Entry[] {
  const walk = (command: Command, words: string[]): Entry[] => {
    const children = command.commands.filter((one) => !(one as Command & { _hidden?: boolean })._hidden)
    const flags = [...command.options.filter(({ hidden }) => !hidden), ...(words.length > 0 ? [HELP_FLAG] : [])]
    const own = {
      words,
      summary: command.summary(),
      flags: flags.map(({ long, description }) => ({ name: long ?? '', help: description })),
      children: children.map((one) => one.name()),
    }
    return [own, ...children.flatMap((one) => walk(one, [...words, one.name()]))]
  }
  return walk(program, [])
}

const HELP_FLAG = { long: '--help', description: 'how it is used, with examples' }

function bash(program: Command): string {
  const cases = entriesOf(program).map(({ words, flags, children }) => {
    const offered = [...children, ...flags.map(({ name }) => name)].join(' ')
    return `    '${words.join(' ')}') words='${offered}' ;;`
  })
  return `# bash completion for agent
_agent() {
  local cur=\${COMP_WORDS[COMP_CWORD]} path='' words='' at
  for ((at = 1; at < COMP_CWORD; at++)); do
    case \${COMP_WORDS[at]} in
      -*) ;;
      *) case "$path" in
${entriesOf(program)
  .filter(({ children }) => children.length > 0)
  .map(
    ({ words, children }) =>
      `        '${words.join(' ')}') case \${COMP_WORDS[at]} in ${children.join('|')}) path="\${path:+$path }\${COMP_WORDS[at]}" ;; esac ;;`,
  )
  .join('\n')}
      esac ;;
    esac
  done
  case "$path" in
${cases.join('\n')}
  esac
  case "$path" in
    ${TAKES_ARTIFACT.join('|')}) [[ $cur == -* ]] || words="$words $(agent complete-names 2>/dev/null | tr '\\n' ' ')" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _agent agent`
}

function zsh(program: Command): string {
  const quote = (text: string) => text.replace(/'/g, "'\\''").replace(/[[\]:\\]/g, '\\$&')
  const entries = entriesOf(program)
  const summaryOf = (words: string[]) =>
    entries.find((entry) => entry.words.join(' ') === words.join(' '))?.summary ?? ''
  const cases = entries.map(({ words, flags, children }) => {
    const offered = [
      ...children.map((name) => `'${name}:${quote(summaryOf([...words, name]))}'`),
      ...flags.map(({ name, help }) => `'${name}:${quote(help)}'`),
    ]
    return `    '${words.join(' ')}') offered=(${offered.join(' ')}) ;;`
  })
  const parents = entries.filter(({ children }) => children.length > 0)
  // `path` is another name of PATH in zsh: not for a variable.
  return `#compdef agent
_agent() {
  local -a offered names
  local at='' word
  for word in \${words[2,CURRENT-1]}; do
    case "$at $word" in
${parents.flatMap(({ words, children }) => children.map((name) => `      '${words.join(' ')} ${name}') at='${[...words, name].join(' ')}' ;;`)).join('\n')}
    esac
  done
  case "$at" in
${cases.join('\n')}
  esac
  _describe -o 'agent' offered
  case "$at" in
    ${TAKES_ARTIFACT.join('|')}) names=(\${(f)"$(agent complete-names 2>/dev/null)"}); compadd -a names ;;
    publish|start) _files ;;
  esac
}
# Sourced, it registers itself; loaded from fpath, it is called for the first time.
if [[ \${funcstack[1]} == _agent ]]; then _agent "$@"; else compdef _agent agent; fi`
}

function fish(program: Command): string {
  const quote = (text: string) => `'${text.replace(/['\\]/g, '\\$&')}'`
  const lines = entriesOf(program).flatMap(({ words, flags, children, summary }) => {
    const [noun, verb] = words
    const here =
      noun === undefined
        ? '__fish_use_subcommand'
        : verb === undefined
          ? `__fish_seen_subcommand_from ${noun}`
          : `__fish_seen_subcommand_from ${noun}; and __fish_seen_subcommand_from ${verb}`
    const self =
      noun === undefined
        ? []
        : verb === undefined
          ? [`complete -c agent -f -n __fish_use_subcommand -a ${noun} -d ${quote(summary)}`]
          : [
              `complete -c agent -f -n '__fish_seen_subcommand_from ${noun}; and not __fish_seen_subcommand_from ${(parentChildren(program, noun) ?? []).join(' ')}' -a ${verb} -d ${quote(summary)}`,
            ]
    const own = flags.map(({ name, help }) => `complete -c agent -n '${here}' -l ${name.slice(2)} -d ${quote(help)}`)
    return [...self, ...(children.length > 0 && noun !== undefined ? [] : own)]
  })
  return [
    '# fish completion for agent',
    ...lines,
    `complete -c agent -f -n '__fish_seen_subcommand_from ${TAKES_ARTIFACT.join(' ')}' -a '(agent complete-names 2>/dev/null)'`,
  ].join('\n')
}

function parentChildren(program: Command, noun: string): string[] | undefined {
  return program.commands.find((one) => one.name() === noun)?.commands.map((one) => one.name())
}
