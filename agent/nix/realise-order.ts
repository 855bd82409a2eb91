/**
 * The order in which Nix will ask for the NARs of paths whose narinfos it asked for: a path comes after those that it refers to, and of those that
 * may come the first by name, as its goals are ordered (PathSubstitutionGoal::key in Nix's libstore). As long as not all narinfos were asked for it is a guess.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { SignedFacts } from './signing.ts'

/** A closure has at most so many paths worth waiting in line: the oldest are forgotten. */
const WAITING_MAX = 10_000
/** References of a path that are looked at, which is done again whenever one of them has come: of more the order is a guess. */
const LOOKED_AT_MAX = 256
/** `/nix/store/`, the hash part and a dash; a store elsewhere has the same names in the same order. */
const NAME_AT = 44

export type WantedNar = Pick<SignedFacts, 'path' | 'narHash' | 'narSize' | 'references'>
/** Small ones are fetched beside the others. */
export type Kind = 'small' | 'large'
type Waiting = {
  readonly nar: WantedNar
  readonly key: string
  readonly kind: Kind
  /** The path that has to come before, as far as was looked. */
  before: string | undefined
}

export class RealiseOrder {
  readonly #all = new Map<Digest, Waiting>()
  readonly #byPath = new Map<string, Waiting>()
  /** Those before which nothing has to come that was known when they were looked at; the first of them at the end. */
  readonly #ready: Record<Kind, Waiting[]> = { small: [], large: [] }
  /** Path -> those that come after it. */
  readonly #behind = new Map<string, Set<Waiting>>()
  #bytes = 0

  /** Of all that wait. */
  get bytes(): number {
    return this.#bytes
  }

  /** Who waits already keeps his place. Each kind has an order, though one may come after another of the other kind. */
  add(kind: Kind, nar: WantedNar): void {
    if (this.#all.has(nar.narHash)) return
    const waiting = { nar, key: keyOf(nar), kind, before: undefined }
    this.#all.set(nar.narHash, waiting)
    this.#byPath.set(nar.path, waiting)
    this.#bytes += nar.narSize
    this.#insert(waiting)
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
    const { nar, key, kind, before } = waiting
    this.#all.delete(digest)
    this.#bytes -= nar.narSize
    if (this.#byPath.get(nar.path) === waiting) this.#byPath.delete(nar.path)
    if (before !== undefined) this.#behind.get(before)?.delete(waiting)
    else this.#ready[kind].splice(placeOf(this.#ready[kind], key), 1)
    const behind = this.#behind.get(nar.path)
    this.#behind.delete(nar.path)
    for (const one of behind ?? []) this.#insert(one)
  }

  first(kind: Kind): WantedNar | undefined {
    const ready = this.#ready[kind]
    for (let first = ready.at(-1); first !== undefined; first = ready.at(-1)) {
      const { nar } = first
      const looked = nar.references.slice(0, LOOKED_AT_MAX)
      const before = looked.find((path) => path !== nar.path && this.#byPath.has(path))
      if (before === undefined) return nar
      ready.pop()
      first.before = before
      const behind = this.#behind.get(before) ?? new Set()
      this.#behind.set(before, behind.add(first))
    }
    return undefined
  }

  #insert(waiting: Waiting): void {
    waiting.before = undefined
    const ready = this.#ready[waiting.kind]
    ready.splice(placeOf(ready, waiting.key), 0, waiting)
  }
}

/** As Nix has it, which knows one NAR of a path only: here several may be told of. */
function keyOf({ path, narHash }: WantedNar): string {
  return `${path.slice(NAME_AT)}$${path}$${narHash}`
}

/** Where the key is, or would be. */
function placeOf(ready: readonly Waiting[], key: string): number {
  let [low, high] = [0, ready.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((ready[middle]?.key ?? '') > key) low = middle + 1
    else high = middle
  }
  return low
}
