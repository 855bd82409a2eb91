/**
 * Who stated which piece list of one blob, and which of the lists turned out to be false. A list is known by its size and root.
 *
 * Who has the whole blob vouches for the list that he states. Who is fetching it himself only passes on what he was told: he is not to
 * blame when it is false, and when there is a list that somebody vouches for, his is not used.
 */
import type { PieceList } from './content.ts'

export class Claims {
  readonly #vouchers = new Map<string, Set<string>>()
  readonly #false = new Set<string>()

  /** A peer states a list; `isHearsay` when it does not vouch for it. */
  add(list: PieceList, peerId: string, isHearsay: boolean): void {
    if (isHearsay) return
    const key = keyOf(list)
    this.#vouchers.set(key, (this.#vouchers.get(key) ?? new Set()).add(peerId))
  }

  isFalse(list: PieceList): boolean {
    return this.#false.has(keyOf(list))
  }

  isVouchedFor(list: PieceList): boolean {
    return this.#vouchers.has(keyOf(list))
  }

  /** The list is false. @returns those who vouched for it. */
  refute(list: PieceList): string[] {
    const key = keyOf(list)
    this.#false.add(key)
    const liars = [...(this.#vouchers.get(key) ?? [])]
    this.#vouchers.delete(key)
    return liars
  }

  /** The list is true. @returns those who vouched for another one. */
  confirm(list: PieceList): string[] {
    const key = keyOf(list)
    return [...this.#vouchers].flatMap(([other, peers]) => (other === key ? [] : [...peers]))
  }
}

export function isSameList(a: PieceList, b: PieceList): boolean {
  return keyOf(a) === keyOf(b)
}

function keyOf({ sizeBytes, root }: PieceList): string {
  return `${sizeBytes} ${Buffer.from(root).toString('hex')}`
}
