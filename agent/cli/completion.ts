/**
 * `agent completion SHELL`: a script that completes commands, flags, and the names of artifacts, networks and members. The script is made
 * from the commands themselves, so it knows exactly what this version has.
 */
import type { Command } from 'commander'
import type { Client } from '../api/client.ts'
import type { SearchResult } from '../api/contract.ts'
import type { MemberList, NetworkList } from '../api/membership-contract.ts'
import type { PinList } from '../api/room-contract.ts'
import { AgentError } from '../error.ts'
import type { CommandLine } from './command-line.ts'

const SHELLS = { bash, zsh, fish } as const

/** The script for a shell, of all commands of a program. */
export function completionScript(shell: keyof typeof SHELLS, program: Command): string {
  return SHELLS[shell](program)
}

/** Commands whose first argument is a name that the agent knows, by what it names. */
const TAKES = {
  artifact: ['get', 'show', 'unpublish', 'pin', 'content'],
  pinned: ['unpin'],
  network: [
    'network show',
    'network leave',
    'network export-root',
    'network import-root',
    'network remove-root',
    'network delegate',
  ],
  member: ['member show', 'member revoke', 'member label', 'policy explain'],
} as const
type Kind = keyof typeof TAKES
const KINDS = Object.keys(TAKES) as Kind[]
/** The flag whose value is a network's name, wherever it stands. */
const NETWORK_FLAG = '--network'
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
  const names = line.program.command('complete-names [kind]', { hidden: true })
  line.asks<[string | undefined]>(names, async ({ client, terminal }, _options, kind) => {
    const found = await namesOf(client, kind).catch(() => [])
    terminal.print(...new Set(found.filter((name) => SAFE_NAME.test(name))))
  })
}

async function namesOf(client: Client, kind: string | undefined): Promise<string[]> {
  if (kind === 'network') {
    const { networks, open } = await client.get<NetworkList>('networks')
    return [...networks, ...(open === null ? [] : [open])].map(({ name }) => name)
  }
  if (kind === 'member') return (await client.get<MemberList>('members')).members.map(({ name }) => name)
  if (kind === 'pinned') return (await client.get<PinList>('pins')).pins.map(({ name }) => name)
  const { artifacts } = await client.get<SearchResult>('search', { limit: NAMES_MAX })
  return artifacts.map(({ name }) => name)
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
  local names=''
  case "$path" in
${KINDS.map((kind) => `    ${TAKES[kind].map((path) => `'${path}'`).join('|')}) [[ $cur == -* ]] || names=${kind} ;;`).join('\n')}
  esac
  if [[ \${COMP_WORDS[COMP_CWORD-1]} == ${NETWORK_FLAG} ]]; then words='' names=network; fi
  [[ -z $names ]] || words="$words $(agent complete-names $names 2>/dev/null | tr '\\n' ' ')"
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _agent agent`
}

function zsh(program: Command): string {
  const quote = (text: string) => text.replace(/[[\]:\\]/g, '\\$&').replace(/'/g, "'\\''")
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
  local kind=''
  case "$at" in
${KINDS.map((kind) => `    ${TAKES[kind].map((path) => `'${path}'`).join('|')}) kind=${kind} ;;`).join('\n')}
    publish|start|join|'policy set'|'policy check') _files ;;
  esac
  if [[ $words[CURRENT-1] == ${NETWORK_FLAG} ]]; then kind=network; else _describe -o 'agent' offered; fi
  [[ -z $kind ]] || { names=(\${(f)"$(agent complete-names $kind 2>/dev/null)"}); compadd -a names }
}
# Sourced, it registers itself; loaded from fpath, it is called for the first time.
if [[ \${funcstack[1]} == _agent ]]; then _agent "$@"; else compdef _agent agent; fi`
}

function fish(program: Command): string {
  const quote = (text: string) => `'${text.replace(/['\\]/g, '\\$&')}'`
  const entries = entriesOf(program)
  const summaryOf = (words: string[]) =>
    entries.find((entry) => entry.words.join(' ') === words.join(' '))?.summary ?? ''
  const at = (words: readonly string[]) => quote(`__agent_at ${quote(words.join(' '))}`)
  const lines = entries.flatMap(({ words, flags, children }) => [
    ...children.map(
      (name) => `complete -c agent -f -n ${at(words)} -a ${name} -d ${quote(summaryOf([...words, name]))}`,
    ),
    ...flags.map(({ name, help }) => {
      const value = name === NETWORK_FLAG ? ` -x -a '(agent complete-names network 2>/dev/null)'` : ''
      return `complete -c agent -n ${at(words)} -l ${name.slice(2)} -d ${quote(help)}${value}`
    }),
  ])
  const cases = entries.flatMap(({ words, children }) =>
    children.map(
      (name) => `      case ${quote(`${words.join(' ')} ${name}`)}\n        set path ${[...words, name].join(' ')}`,
    ),
  )
  const names = KINDS.flatMap((kind) =>
    TAKES[kind].map(
      (path) => `complete -c agent -f -n ${at(path.split(' '))} -a '(agent complete-names ${kind} 2>/dev/null)'`,
    ),
  )
  return `# fish completion for agent
function __agent_at
  set -l path
  set -l typed (commandline -opc)
  for word in $typed[2..-1]
    switch "$path $word"
${cases.join('\n')}
    end
  end
  test "$path" = "$argv[1]"
end
${[...lines, ...names].join('\n')}`
}
