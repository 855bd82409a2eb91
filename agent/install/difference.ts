/** Two texts compared for a person: what would go and what would come, with the lines around it. Where they begin and end to differ is
 * found, and nothing finer: what is shown are blocks that are put in or taken out. */

const CONTEXT_LINES = 2

/** Lines with `-`, `+` or a space in front; none when the texts are the same. */
export function difference(before: string, after: string): string[] {
  if (before === after) return []
  const [old, fresh] = [linesOf(before), linesOf(after)]
  let head = 0
  while (head < old.length && head < fresh.length && old[head] === fresh[head]) head++
  let tail = 0
  while (tail < old.length - head && tail < fresh.length - head && old.at(-1 - tail) === fresh.at(-1 - tail)) tail++
  const mark = (sign: string, lines: string[]) => lines.map((line) => `${sign}${line}`)
  return [
    ...mark(' ', old.slice(Math.max(0, head - CONTEXT_LINES), head)),
    ...mark('-', old.slice(head, old.length - tail)),
    ...mark('+', fresh.slice(head, fresh.length - tail)),
    ...mark(' ', old.slice(old.length - tail, old.length - tail + CONTEXT_LINES)),
  ]
}

/** A last line without an end is another line than the same with one. */
function linesOf(text: string): string[] {
  const lines = text.split('\n')
  const last = lines.pop() ?? ''
  return last === '' ? lines : [...lines, `${last} (no line break at its end)`]
}
