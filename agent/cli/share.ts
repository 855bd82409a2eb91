/** `agent network share`: what is given out in a network, what was published there or the whole Nix store. */
import type { Command } from 'commander'
import type { ShareMode, ShareView } from '../api/share-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import { agreed } from './agreement.ts'
import type { CommandLine } from './command-line.ts'
import { count } from './measures.ts'
import { networkPath } from './network-named.ts'
import type { Terminal } from './terminal.ts'

/** What the open network is called. */
const OPEN = 'open'
const MODES: readonly string[] = ['published', 'store'] satisfies ShareMode[]

export function addShare(line: CommandLine, parent: Command): void {
  const share = line
    .command({
      parent,
      usage: 'share <network> [what]',
      summary: 'what to give out there: published, or the whole Nix store',
      details:
        'At first it is what was published there, and nothing else. With `store` members can also have every path of the Nix store on this machine, without a copy being made; what is built later is found within seconds. Derivations, paths whose names look like secrets (private_paths in the configuration), and whatever refers to one of those stay private. In the open network it is everybody who can have them, sources of your own projects included.',
      examples: [
        ['network share home store', 'members of home can have all that is in the Nix store here'],
        ['network share home published', 'only what was published there, as at first'],
        ['network share home', 'how it is'],
      ],
    })
    .option('-y, --yes', 'do not ask, where everybody would be given the store')
  line.asks<[string, string | undefined], { yes?: boolean }>(share, async (session, { yes = false }, network, what) => {
    const { client, terminal, isJson } = session
    const path = `${networkPath(network)}/share`
    let view: ShareView
    if (what === undefined) view = await client.get<ShareView>(path)
    else {
      if (!MODES.includes(what)) {
        throw new AgentError('usage', `${JSON.stringify(what)} is nothing that can be shared`, {
          next: 'Say `store` for the whole Nix store, or `published` for what was published there.',
        })
      }
      if (network === OPEN && what === 'store') await warned(session, yes)
      view = await client.put<ShareView>(path, { share: what })
    }
    if (isJson) terminal.json(view)
    else terminal.print(...shareScreen(view, terminal))
  })
}

/** Everybody: that is no slip of the finger. */
async function warned(session: Parameters<typeof agreed>[0], yes: boolean): Promise<void> {
  if (!yes && !session.terminal.canAsk) {
    throw new AgentError('usage', 'in the open network everybody can have what is in the Nix store here', {
      next: 'Sources of your own projects are in it, too. If that is what you want: --yes.',
    })
  }
  await agreed(
    session,
    yes,
    'Everybody will be able to have every path of the Nix store here, sources of your own projects included. Go on?',
  )
}

function shareScreen({ network, share, paths, unseen }: ShareView, terminal: Pick<Terminal, 'style'>): string[] {
  const who = network === OPEN ? 'Everybody' : `Members of ${printable(network)}`
  const what =
    share === 'published'
      ? 'what this machine published there'
      : `the Nix store of this machine${paths === null ? '' : `: ${count(paths, 'path')}`}`
  const note = unseen
    ? [
        '',
        `${terminal.style('yellow', '!')} Nobody there sees it: ${printable(unseen.why)}`,
        `  ${printable(unseen.next)}`,
      ]
    : []
  return [`${who} can have ${what}.`, ...note]
}
