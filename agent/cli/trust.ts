/** `agent trust`: the keys whose signatures of Nix store paths this agent believes. */
import type { TrustedKeyView } from '../api/contract.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'
import { table } from './table.ts'

const ORIGINS: Record<TrustedKeyView['origin'], string> = {
  own: 'this agent',
  config: 'configuration',
  added: 'agent trust add',
}

export function addTrust(line: CommandLine): void {
  const parent = line.command({
    usage: 'trust',
    summary: 'whose signatures of Nix store paths are believed',
    details:
      'A store path that peers offer is handed to Nix only with a signature by one of these keys. The agent then signs it with its own.',
    examples: [
      ['trust list', 'the keys'],
      ['trust add apple-1:c2VjcmV0...=', 'believe what the node apple signs'],
    ],
  })
  const list = line.command({
    parent,
    usage: 'list',
    summary: 'the keys that are believed',
    examples: [['trust list', 'all, and where each comes from']],
  })
  line.asks(list, async ({ client, terminal, isJson }) => {
    const reply = await client.get<{ keys: TrustedKeyView[] }>('trust')
    if (isJson) return terminal.json(reply)
    if (reply.keys.length === 0)
      return terminal.print(
        'No key is trusted: no store path of a peer is accepted.',
        'Add one: agent trust add NAME:BASE64',
      )
    const rows = reply.keys.map(({ name, key, origin }) => [name, ORIGINS[origin], key])
    terminal.print(...table([{ title: 'NAME' }, { title: 'FROM' }, { title: 'KEY' }], rows, terminal.columns))
  })

  const add = line.command({
    parent,
    usage: 'add <key>',
    summary: 'believe what this key signs',
    details: '`agent nix-conf` on the node that publishes prints its key.',
    examples: [['trust add apple-1:c2VjcmV0...=', 'as in trusted-public-keys of nix.conf']],
  })
  line.asks<[string]>(add, async ({ client, terminal, isJson }, _options, key) => {
    const added = await client.post<TrustedKeyView>('trust', { key })
    if (isJson) terminal.json(added)
    else terminal.print(`Trusted from now on: ${printable(added.name)}`)
  })

  const remove = line.command({
    parent,
    usage: 'remove <key>',
    summary: 'believe a key no more',
    examples: [['trust remove apple-1', 'by its name, or the whole key']],
  })
  line.asks<[string]>(remove, async ({ client, terminal, isJson }, _options, key) => {
    const removed = await client.delete<TrustedKeyView>('trust', { key })
    if (isJson) terminal.json(removed)
    else terminal.print(`No longer trusted: ${printable(removed.name)}`)
  })
}
