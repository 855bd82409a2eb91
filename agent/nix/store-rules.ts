/**
 * Which store paths are private whatever is shared: those whose names fit a pattern of the configuration. `*` is any text and `?` any
 * character; case does not matter. What refers to a private path is kept back as well, by StoreIndex.
 */

export class StoreRules {
  readonly #pattern: RegExp | undefined

  constructor(patterns: readonly string[]) {
    this.#pattern = patterns.length === 0 ? undefined : new RegExp(`^(?:${patterns.map(sourceOf).join('|')})$`, 'i')
  }

  /** Whether a path of this name, which is what follows the hash part and its dash, is private. */
  isPrivate(name: string): boolean {
    return this.#pattern?.test(name) ?? false
  }

  /** The same for a full path. */
  isPrivatePath(path: string): boolean {
    return this.isPrivate(nameOf(path))
  }
}

/** What follows the hash part of a path, or of its last component alone. */
export function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1).slice(33)
}

function sourceOf(pattern: string): string {
  const parts = pattern.split(/([*?])/).map((part) => {
    if (part === '*') return '.*'
    return part === '?' ? '.' : part.replace(/[.+^${}()|[\]\\]/g, '\\$&')
  })
  return parts.join('')
}
