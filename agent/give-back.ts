/**
 * Frees memory that nobody uses any more, at once. The garbage collector learns of buffers late: those that lie outside its heap make it look
 * through all of the heap again and again, which takes longer than what they were used for.
 */

/** Nothing may use the bytes afterwards. What shares its memory with others is left alone. */
export function giveBack({ buffer, byteLength }: Uint8Array): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength === byteLength) buffer.transfer(0)
}
