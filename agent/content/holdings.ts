/**
 * What this node can serve: the holders, asked in order. The first that has a blob gives it.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { BlobHolder, BlobSource } from './content.ts'

export class Holdings implements BlobHolder {
  readonly #holders: readonly BlobHolder[]

  constructor(holders: readonly BlobHolder[]) {
    this.#holders = holders
  }

  async open(digest: Digest): Promise<BlobSource | undefined> {
    for (const holder of this.#holders) {
      const source = await holder.open(digest)
      if (source) return source
    }
    return undefined
  }

  *networksOf(digest: Digest): Iterable<string> {
    for (const holder of this.#holders) yield* holder.networksOf(digest)
  }
}
