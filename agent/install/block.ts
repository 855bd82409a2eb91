/**
 * Lines of ours in a file of somebody else's, between two marks. What was not ours stays as it is to the byte, also where the file does
 * not end with a line break: taking the lines out again gives what was there before.
 *
 * Texts are read as latin1, so that a file is what it is whatever its encoding.
 */

const NOTE = '(put here by `agent install`, taken away by `agent uninstall`)'
const BEGIN = `# undernet: begin ${NOTE}`
/** The line before had no end. */
const BEGIN_BROKEN = `# undernet: begin, in a line of its own ${NOTE}`
const END = '# undernet: end'

/** The text with these lines at its end, or in place of those that are there. */
export function withBlock(text: string, lines: readonly string[]): string {
  const there = find(text)
  const before = there?.before ?? text
  const isBroken = there?.isBroken ?? (text !== '' && !text.endsWith('\n'))
  const block = [isBroken ? BEGIN_BROKEN : BEGIN, ...lines, END].map((line) => `${line}\n`).join('')
  return `${before}${isBroken ? '\n' : ''}${block}${there?.after ?? ''}`
}

/** The text without our lines; undefined when there are none in it. */
export function withoutBlock(text: string): string | undefined {
  const there = find(text)
  return there && `${there.before}${there.after}`
}

type Found = { before: string; after: string; isBroken: boolean }

/** The last mark of an end, and the last of a beginning before it: marks without their other half are not ours. */
function find(text: string): Found | undefined {
  const end = lastLine(text, END)
  if (end < 0) return undefined
  const at = Math.max(lastLine(text.slice(0, end), BEGIN), lastLine(text.slice(0, end), BEGIN_BROKEN))
  if (at < 0) return undefined
  const isBroken = text.startsWith(BEGIN_BROKEN, at)
  // Then the line break in front is ours, too.
  if (isBroken && at === 0) return undefined
  const after = text.slice(end + END.length + 1)
  return { before: text.slice(0, isBroken ? at - 1 : at), after, isBroken }
}

/** Where the last line that is exactly this begins; -1 when there is none. */
function lastLine(text: string, line: string): number {
  return `\n${text}`.lastIndexOf(`\n${line}\n`)
}
