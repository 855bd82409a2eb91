/** `agent join`: into a network, by a token. */
import { NAME_PATTERN } from '../../protocols/membership/words.ts'
import type { NetworkDetail } from '../api/membership-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { readName } from './labels.ts'
import { endingOf, endingText } from './lifetime.ts'
import { count } from './measures.ts'
import type { Terminal } from './terminal.ts'
import { readText } from './text-input.ts'

/** Of a file with a token: also one with comments, or that was sent by mail. */
const FILE_BYTES_MAX = 64 * 1024

type Options = { file?: string; as?: string }

export function addJoin(line: CommandLine): void {
  const command = line
    .command({
      usage: 'join [token]',
      summary: 'join a network, by a token that `agent invite` printed',
      details:
        'Without a token it is asked for, or read from standard input: other users of this machine can see arguments. A file may have comments (#).',
      examples: [
        ['join', 'asks for the token'],
        ['join --file token.txt --as web1', 'from a file, with a name that is wished for'],
        ['join < token.txt', 'from standard input'],
      ],
    })
    .option('--file <file>', 'the token is in this file')
    .option('--as <host>', 'what this machine would be called there; otherwise its own name')
  line.asks<[string | undefined], Options>(command, async (session, { file, as }, typed) => {
    const { client, terminal, isJson } = session
    if (typed !== undefined && file !== undefined) throw new AgentError('usage', 'a token and --file: one will do')
    const name = as === undefined ? undefined : readName(as, '--as')
    const token = tokenIn(await tokenText(terminal, typed, file))
    const network = await client.post<NetworkDetail>('join', { token, name }, session.interrupted())
    if (isJson) return terminal.json(network)
    const { member, members } = network
    // Who else is there is told by the others: it may not have come yet.
    const others = members > 1 ? `; ${count(members, 'member')}` : ''
    terminal.print(`This machine is ${printable(member.name)} in network ${printable(network.name)}${others}.`)
    if (!terminal.isInteractive) return
    const ending = endingText(endingOf(member, Date.now()))
    terminal.note(
      '',
      `Its certificate ${ending}, and is renewed before by itself. Who else is there: agent member list`,
    )
  })
}

async function tokenText(terminal: Terminal, typed: string | undefined, file: string | undefined): Promise<string> {
  if (typed !== undefined && typed !== '-') return typed
  if (file !== undefined) return await readText(file, terminal, FILE_BYTES_MAX)
  if (typed === undefined && terminal.canAsk) return await terminal.ask('Token:')
  return await readText('-', terminal, FILE_BYTES_MAX)
}

/** One token, without comments and line breaks. @throws {AgentError} `usage` */
function tokenIn(text: string): string {
  const lines = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'))
  const tokens = lines.filter((line) => /^un1/i.test(line)).length
  if (tokens === 1) return lines.join('')
  const [word = ''] = lines
  if (tokens === 0) {
    const isName = NAME_PATTERN.test(word) && lines.length === 1
    throw new AgentError('usage', word === '' ? 'no token was given' : 'this is not a token: one begins with un1', {
      next: isName
        ? 'A network is joined by a token, not by its name: `agent invite` on a member prints one.'
        : '`agent invite` on a machine that is in the network prints one.',
    })
  }
  throw new AgentError('usage', `these are ${tokens} tokens`, {
    next: 'Give one at a time; join_file in the configuration may have several.',
  })
}
