/**
 * Who stated which piece list of one blob, and which of the lists turned out to be false. A list is known by its size and root.
 *
 * Who has the whole blob vouches for the list that he states. Who is fetching it himself only passes on what he was told: he is not to
 * blame when it is false, and when there is a list that somebody vouches for, his is not used. Whoever signed the list is to blame, also where
 * others repeat it.
 */
import type { PieceList } from './content.ts'
import type { SignedList } from './statements.ts'

/** Statements kept of one blob: each is of a signer of its own, and who repeats a list may make up keys. */
const SIGNED_MAX = 64

/** Who stated a list that is false, and the statements that prove it. */
export type Liars = { peerIds: string[]; proofs: SignedList[] }

export class Claims {
  readonly #vouchers = new Map<string, Set<string>>()
  readonly #signed = new Map<string, Map<string, SignedList>>()
  readonly #false = new Set<string>()

  /** A peer states a list; `isHearsay` when it does not vouch for it. `signed` may be of another peer, from whom it has the list. */
  add(list: PieceList, peerId: string, isHearsay: boolean, signed?: SignedList): void {
    const key = keyOf(list)
    if (signed && [...this.#signed.values()].reduce((sum, { size }) => sum + size, 0) < SIGNED_MAX)
      this.#signed.set(key, (this.#signed.get(key) ?? new Map<string, SignedList>()).set(signed.peerId, signed))
    if (isHearsay) return
    this.#vouchers.set(key, (this.#vouchers.get(key) ?? new Set()).add(peerId))
  }

  isFalse(list: PieceList): boolean {
    return this.#false.has(keyOf(list))
  }

  isVouchedFor(list: PieceList): boolean {
    return this.#vouchers.has(keyOf(list))
  }

  /** The list is false. @returns those who vouched for it or signed it. */
  refute(list: PieceList): Liars {
    const key = keyOf(list)
    this.#false.add(key)
    const liars = this.#liars([key])
    this.#vouchers.delete(key)
    this.#signed.delete(key)
    return liars
  }

  /** The list is true. @returns those who vouched for another one, or signed it. */
  confirm(list: PieceList): Liars {
    const key = keyOf(list)
    return this.#liars([...this.#vouchers.keys(), ...this.#signed.keys()].filter((other) => other !== key))
  }

  #liars(keys: readonly string[]): Liars {
    const proofs = [...new Set(keys)].flatMap((key) => [...(this.#signed.get(key)?.values() ?? [])])
    const vouchers = keys.flatMap((key) => [...(this.#vouchers.get(key) ?? [])])
    return { peerIds: [...new Set([...vouchers, ...proofs.map(({ peerId }) => peerId)])], proofs }
  }
}

export function isSameList(a: PieceList, b: PieceList): boolean {
  return keyOf(a) === keyOf(b)
}

function keyOf({ sizeBytes, root }: PieceList): string {
  return `${sizeBytes} ${Buffer.from(root).toString('hex')}`
}
