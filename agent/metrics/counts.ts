/** A metric with labels that is counted where something happens: so many different labels and no more, the rest together. */
import type { MetricName, Sample } from './table.ts'

/** What is counted has labels of the code's own words. A mistake there, or a library's, must not grow without end. */
const SERIES_MAX = 256
const OTHER = 'other'

export class Counts {
  readonly #name: MetricName
  readonly #labels: readonly string[]
  readonly #values = new Map<string, { labels: Record<string, string>; value: number }>()

  constructor(name: MetricName, labels: readonly string[]) {
    this.#name = name
    this.#labels = labels
  }

  /** `words` are the values of the labels, in their order. */
  add(words: readonly string[], by = 1): void {
    this.at(words).value += by
  }

  /** The count itself, for who counts often; from now on it is told, if only as 0. */
  at(words: readonly string[]): { value: number } {
    const key = words.join('\0')
    const known = this.#values.get(key)
    if (known !== undefined) return known
    if (this.#values.size >= SERIES_MAX && words.some((word) => word !== OTHER)) return this.at(words.map(() => OTHER))
    const labels = Object.fromEntries(this.#labels.map((label, at) => [label, words[at] ?? OTHER]))
    const made = { labels, value: 0 }
    this.#values.set(key, made)
    return made
  }

  samples(): Sample[] {
    return [...this.#values.values()].map(({ labels, value }) => ({ name: this.#name, labels, value }))
  }
}
