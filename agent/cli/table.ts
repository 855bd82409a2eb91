/**
 * Tables that line up, whatever is in them: cells are cleaned of control characters, wide characters count twice, and columns that may
 * shrink do so until the table fits the terminal. On a terminal too narrow for that, each row becomes a block of lines.
 */
import { printable } from '../printable.ts'

export type Column = {
  title: string
  align?: 'right'
  /** Where text is cut to fit the terminal; a column without it is never cut. */
  cut?: 'end' | 'middle'
  style?: (text: string, row: number) => string
}

const GAP = '  '
/** A cut column is no narrower: less tells nothing. */
const CUT_WIDTH_MIN = 8

/** Lines of a table; `width` is the terminal's, undefined where nobody looks (a pipe, a file): then nothing is cut. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[], width?: number): string[] {
  const cells = rows.map((row) => row.map(printable))
  const widths = columns.map(({ title }, at) =>
    Math.max(...[title, ...cells.map((row) => row[at] ?? '')].map(textWidth)),
  )
  if (width !== undefined && !shrink(columns, widths, width)) return blocks(columns, cells, width)
  const line = (row: readonly string[], styled?: number) =>
    columns
      .map(({ align, cut, style }, at) => {
        const text = shorten(row[at] ?? '', widths[at] as number, cut)
        const padding = ' '.repeat(Math.max(0, (widths[at] as number) - textWidth(text)))
        const shown = style && styled !== undefined ? style(text, styled) : text
        if (align === 'right') return padding + shown
        return at === columns.length - 1 ? shown : shown + padding
      })
      .join(GAP)
      .trimEnd()
  return [line(columns.map(({ title }) => title)), ...cells.map((row, at) => line(row, at))]
}

/** `Label  value` lines, the values in one column; a value's further lines stand below its first. */
export function fields(entries: readonly (readonly [string, string | readonly string[]])[]): string[] {
  const width = Math.max(...entries.map(([label]) => textWidth(label)))
  return entries.flatMap(([label, value]) =>
    [value].flat().map((text, at) => `${(at === 0 ? label : '').padEnd(width)}${GAP}${text}`.trimEnd()),
  )
}

/** Cells of a terminal that a text takes. An estimate: terminals differ on emoji. */
export function textWidth(text: string): number {
  // Nearly all text is ASCII.
  if (/^[ -~]*$/.test(text)) return text.length
  let width = 0
  for (const character of text) width += ZERO_WIDTH.test(character) ? 0 : WIDE.test(character) ? 2 : 1
  return width
}

const ZERO_WIDTH = /\p{M}/u
const WIDE =
  /[\u{1100}-\u{115f}\u{2e80}-\u{303e}\u{3041}-\u{a4cf}\u{ac00}-\u{d7a3}\u{f900}-\u{faff}\u{fe30}-\u{fe6f}\u{ff00}-\u{ff60}\u{ffe0}-\u{ffe6}\u{20000}-\u{3fffd}]|\p{Emoji_Presentation}/u

/** Cuts a text to a width, with an ellipsis where something is missing. */
export function shorten(text: string, width: number, cut: 'end' | 'middle' = 'end'): string {
  if (textWidth(text) <= width) return text
  if (cut === 'end') return `${start(text, width - 1)}…`
  const tail = Math.floor((width - 1) / 2)
  return `${start(text, width - 1 - tail)}…${end(text, tail)}`
}

function start(text: string, width: number): string {
  let left = width
  let at = 0
  for (const character of text) {
    left -= textWidth(character)
    if (left < 0) break
    at += character.length
  }
  return text.slice(0, at)
}

/** The longest end that fits. */
function end(text: string, width: number): string {
  let excess = textWidth(text) - width
  let at = 0
  for (const character of text) {
    if (excess <= 0) break
    excess -= textWidth(character)
    at += character.length
  }
  return text.slice(at)
}

/** Takes width from the widest column that may be cut, until the line fits; false when it cannot. */
function shrink(columns: readonly Column[], widths: number[], width: number): boolean {
  let excess = widths.reduce((sum, one) => sum + one, GAP.length * (columns.length - 1)) - width
  while (excess > 0) {
    let widest = -1
    for (const [at, { cut }] of columns.entries()) {
      const mayShrink = cut !== undefined && (widths[at] as number) > CUT_WIDTH_MIN
      if (mayShrink && (widest === -1 || (widths[at] as number) > (widths[widest] as number))) widest = at
    }
    if (widest === -1) return false
    widths[widest] = (widths[widest] as number) - 1
    excess--
  }
  return true
}

function blocks(columns: readonly Column[], rows: readonly (readonly string[])[], width: number): string[] {
  const [first, ...rest] = columns
  return rows.flatMap((row, nth) => [
    ...(nth > 0 ? [''] : []),
    shorten(row[0] ?? '', Math.max(width, 1), first?.cut),
    ...rest.flatMap(({ title }, at) => {
      const value = row[at + 1] ?? ''
      return value === '' ? [] : [`${GAP}${title.toLowerCase()} ${value}`]
    }),
  ])
}
