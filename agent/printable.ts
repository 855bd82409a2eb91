/**
 * Text from elsewhere, made safe for a terminal. A peer chooses its names and descriptions, and an escape sequence in one could move
 * the cursor, repaint what stands on the screen, or hide a file's real extension.
 */

/** Control, format (direction overrides, zero width) and unpaired surrogate characters. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu
/** Marks that pile up over the lines above. Two are as many as living scripts put on a letter, with room. */
const PILED_MARKS = /(\p{M}{3})\p{M}+/gu

/** One line: white space of any kind becomes a space, what would act on the terminal is left out. */
export function printable(text: string): string {
  return text.replace(/\s+/g, ' ').replace(UNPRINTABLE, '').replace(PILED_MARKS, '$1')
}

/** JSON in which every such character is escaped, so that it is still the same value. */
export function printableJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, undefined, indent).replace(UNPRINTABLE, (one) => (one === '\n' ? one : escaped(one)))
}

function escaped(character: string): string {
  return Array.from(
    { length: character.length },
    (_, at) => `\\u${character.charCodeAt(at).toString(16).padStart(4, '0')}`,
  ).join('')
}
