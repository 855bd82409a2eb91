/**
 * The artifacts of all networks that this node is in, as one: searched, named and counted together, each telling which network it is in.
 * Networks come and go while the agent runs.
 *
 * What is shared in two networks is there twice: which of them it is brought from decides whom this node asks, and may give it to.
 */
import { OPEN_NETWORK } from '../../protocols/records/record.ts'
import { AgentError } from '../error.ts'
import { type Artifact, type Artifacts, type Candidate, theOne, unknownArtifact } from './artifacts.ts'

const OPEN = Buffer.from(OPEN_NETWORK).toString('hex')

/** The artifacts of one network. */
export type NetworkArtifacts = Pick<
  Artifacts,
  'network' | 'search' | 'meanings' | 'open' | 'holders' | 'candidates' | 'count' | 'own'
>

type Entry = { name: string; artifacts: NetworkArtifacts }

export class Catalogs {
  /** By the network's id in hexadecimal. */
  readonly #networks = new Map<string, Entry>()

  /** `name` is what people here call the network. */
  add(name: string, artifacts: NetworkArtifacts): void {
    this.#networks.set(artifacts.network, { name, artifacts })
  }

  remove(network: string): void {
    this.#networks.delete(network)
  }

  /**
   * Best first; everything, newest first, when no words are given. The same content under the same name comes once a network.
   *
   * @throws {AgentError} `not-found` for a network that this node is not in; so do all that take one.
   */
  search(words: string, limit: number, network?: string): { artifacts: Artifact[]; truncated: boolean } {
    const results = this.#of(network).map(({ artifacts }) => artifacts.search(words, limit))
    const all = mergedBestFirst(
      words,
      results.map(({ artifacts }) => artifacts),
    )
    return {
      artifacts: all.slice(0, limit),
      truncated: all.length > limit || results.some(({ truncated }) => truncated),
    }
  }

  /**
   * The artifact that is meant by a CID, a name, or `publisher/name`. Of several that are the same content this node's own, then one of a
   * closed network, so that no stranger is told what is wanted; then the one said last.
   *
   * @throws {AgentError} `not-found`; `usage` when a name means several contents.
   */
  resolve(ref: string, network?: string): Artifact {
    const meanings = this.#of(network).flatMap(({ artifacts }) => artifacts.meanings(ref))
    meanings.sort((a, b) => Number(a.network === OPEN) - Number(b.network === OPEN) || b.issued - a.issued)
    const areSeveral = new Set(meanings.map((one) => one.network)).size > 1
    const meant = theOne(ref, meanings, {
      whereOf: (one) => (areSeveral ? ` in ${this.#networks.get(one.network)?.name}` : ''),
      next: `Name one by its CID, or as publisher/name${areSeveral ? ', or say in which network with --network' : ''}.`,
    })
    const artifact = meant && this.#networks.get(meant.network)?.artifacts.open(meant)
    if (artifact) return artifact
    throw unknownArtifact(ref)
  }

  /** Peer ids of those who say that they share this content. */
  holders(cid: string, network?: string): string[] {
    return [...new Set(this.#of(network).flatMap(({ artifacts }) => artifacts.holders(cid)))]
  }

  /** Nix artifacts that may have the path with this hash part, of all networks; those of closed ones first. */
  candidates(hashPart: string): Candidate[] {
    const found = this.#of(undefined).flatMap(({ artifacts }) => artifacts.candidates(hashPart))
    return found.sort((a, b) => Number(a.network === OPEN) - Number(b.network === OPEN))
  }

  /** How many artifact records are live, one in each network counted by itself. */
  count(): { own: number; known: number } {
    const counts = this.#of(undefined).map(({ artifacts }) => artifacts.count())
    return {
      own: counts.reduce((sum, { own }) => sum + own, 0),
      known: counts.reduce((sum, { known }) => sum + known, 0),
    }
  }

  /** What this node shares. */
  own(network?: string): Artifact[] {
    return this.#of(network).flatMap(({ artifacts }) => artifacts.own())
  }

  #of(network: string | undefined): Entry[] {
    if (network === undefined) return [...this.#networks.values()]
    const entry = this.#networks.get(network)
    if (entry) return [entry]
    throw new AgentError('not-found', `this node is not in the network ${network}`, {
      next: '`agent network list` shows those that it is in.',
    })
  }
}

/**
 * Ranks of different networks say nothing of each other (a word is rare or common in one), so their lists take turns; but what has
 * exactly the name that was typed goes first, and where nothing was typed the newest.
 */
function mergedBestFirst(words: string, lists: readonly Artifact[][]): Artifact[] {
  const typed = words.trim()
  const ranked = lists.flatMap((list) => list.map((artifact, place) => ({ artifact, place })))
  const order = ({ artifact, place }: (typeof ranked)[number]) =>
    artifact.name === typed ? -1 : typed === '' ? 0 : place
  ranked.sort((a, b) => order(a) - order(b) || b.artifact.issued - a.artifact.issued)
  return ranked.map(({ artifact }) => artifact)
}
