/**
 * The local Nix store as blobs, in the networks in which it is given out: NARs are read from the store's own files when a peer asks, and
 * nothing is stored twice. What is not given out is not here. A file that is not what Nix registered is found out by whoever makes the piece
 * list, and given out no more.
 */
import { lstat } from 'node:fs/promises'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { BlobHolder, BlobSource } from '../content/content.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { NarLayouts } from './nar-layouts.ts'
import type { StoreIndex } from './store-index.ts'
import type { StoreShares } from './store-shares.ts'

type Deps = {
  index: Pick<StoreIndex, 'hasNar' | 'byNar' | 'reject'>
  shares: Pick<StoreShares, 'networks'>
  log: Log
}

export class StoreSource implements BlobHolder {
  readonly #deps: Deps
  readonly #layouts = new NarLayouts()

  constructor(deps: Deps) {
    this.#deps = deps
  }

  networksOf(digest: Digest): Iterable<string> {
    const { index, shares } = this.#deps
    return index.hasNar(digest) ? shares.networks() : []
  }

  async open(digest: Digest): Promise<BlobSource | undefined> {
    const { index, shares, log } = this.#deps
    const info = shares.networks().size === 0 ? undefined : index.byNar(digest)
    if (!info) return undefined
    const { path, narSize } = info
    const reject = (reason: string) => {
      this.#layouts.forget(digest)
      index.reject(digest)
      log.warn({ path, reason }, 'store.path-bad')
    }
    try {
      // A layout that is kept does not notice that its path was deleted; this does.
      await lstat(path)
      const layout = await this.#layouts.of(digest, path)
      if (layout.sizeBytes === narSize) {
        return {
          sizeBytes: narSize,
          read: (offset, length, signal) => layout.read(offset, length, signal),
          reportCorrupt: () =>
            reject('its files are not those that Nix registered; `nix-store --verify-path` says more'),
        }
      }
      reject(`its NAR has ${layout.sizeBytes} bytes, not the ${narSize} that Nix knows`)
    } catch (error) {
      // Deleted a moment ago, most likely, which the index finds out.
      this.#layouts.forget(digest)
      log.debug({ path, reason: reasonOf(error) }, 'store.path-gone')
    }
    return undefined
  }

  /** The store path of a NAR that is given out. */
  pathOf(digest: Digest): string | undefined {
    return this.#deps.shares.networks().size === 0 ? undefined : this.#deps.index.byNar(digest)?.path
  }

  /** Nothing is given out any more: layouts are of no use. */
  clear(): void {
    this.#layouts.clear()
  }
}
