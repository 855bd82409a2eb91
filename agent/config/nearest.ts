/** Which known word somebody meant who wrote an unknown one. */

/** What is longer is no misspelling of a key; the work grows with the length. */
const WORD_LENGTH_MAX = 64

/** The word of `known` (at least one) with the smallest edit distance, the first of them on a tie. */
export function nearest(word: string, known: readonly string[]): string {
  const asKey = word.toLowerCase().replaceAll('-', '_')
  const ranked = known.map((one) => ({ one, distance: editDistance(asKey, one.toLowerCase()) }))
  ranked.sort((a, b) => a.distance - b.distance)
  return ranked[0]?.one as string
}

/** Levenshtein's, one row at a time. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, at) => at)
  for (const [i, letter] of a.slice(0, WORD_LENGTH_MAX).split('').entries()) {
    const next = [i + 1]
    for (let j = 0; j < b.length; j++) {
      const substitution = (row[j] as number) + (letter === b[j] ? 0 : 1)
      next.push(Math.min(substitution, (row[j + 1] as number) + 1, (next[j] as number) + 1))
    }
    row = next
  }
  return row[b.length] as number
}
