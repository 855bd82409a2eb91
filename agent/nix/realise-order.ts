/**
 * The order in which Nix will ask for the NARs of paths whose narinfos it asked for: a path comes after those that it refers to, and of those that
 * may come the first by name, as its goals are ordered (PathSubstitutionGoal::key in Nix's libstore). As long as not all narinfos were asked for it is a guess.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { SignedFacts } from './signing.ts'

/** A closure has at most so many paths worth waiting in line: the oldest are forgotten. */
const WAITING_MAX = 10_000
/** `/nix/store/`, the hash part and a dash; a store elsewhere has the same names in the same order. */
const NAME_AT = 44

export type WantedNar = Pick<SignedFacts, 'path' | 'narHash' | 'narSize' | 'references'>
/** Small ones are fetched beside the others. */
export type Kind = 'small' | 'large'
type Waiting = { nar: WantedNar; key: string; ready: Waiting[] }

export class RealiseOrder {
  readonly #all = new Map<Digest, Waiting>()
  readonly #byPath = new Map<string, Waiting>()
  /** Those that may come, the first of them at the end; also some that are gone by now, or that something else has to come before. */
  readonly #ready: Record<Kind, Waiting[]> = { small: [], large: [] }
  /** Path -> those that come after it, and were not looked at since. */
  readonly #behind = new Map<string, Waiting[]>()

  /** Who waits already keeps his place. Each kind has an order, though one may come after another of the other kind. */
  add(kind: Kind, nar: WantedNar): void {
    if (this.#all.has(nar.narHash)) return
    const ready = this.#ready[kind]
    const waiting = { nar, key: `${nar.path.slice(NAME_AT)}$${nar.path}`, ready }
    this.#all.set(nar.narHash, waiting)
    this.#byPath.set(nar.path, waiting)
    insert(waiting)
    if (this.#all.size <= WAITING_MAX) return
    for (const oldest of this.#all.keys()) {
      this.delete(oldest)
      break
    }
  }

  /** It waits no more: what comes after it may come. */
  delete(digest: Digest): void {
    const waiting = this.#all.get(digest)
    if (waiting === undefined) return
    const { path } = waiting.nar
    this.#all.delete(digest)
    this.#byPath.delete(path)
    for (const one of this.#behind.get(path) ?? []) insert(one)
    this.#behind.delete(path)
  }

  first(kind: Kind): WantedNar | undefined {
    const ready = this.#ready[kind]
    for (let first = ready.at(-1); first !== undefined; first = ready.at(-1)) {
      const { nar } = first
      if (this.#all.get(nar.narHash) === first) {
        const before = nar.references.find((path) => path !== nar.path && this.#byPath.has(path))
        if (before === undefined) return nar
        const behind = this.#behind.get(before)
        if (behind === undefined) this.#behind.set(before, [first])
        else behind.push(first)
      }
      ready.pop()
    }
    return undefined
  }
}

function insert(waiting: Waiting): void {
  const { ready, key } = waiting
  let [low, high] = [0, ready.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((ready[middle]?.key ?? '') > key) low = middle + 1
    else high = middle
  }
  ready.splice(low, 0, waiting)
}
