/** How long a fetch waits for what. */
export type JobLimits = {
  /** To open a stream, dialling included. */
  openMs: number
  /** Between two pieces. */
  pieceMs: number
  /** Until a source begins to answer; one that does not gives way to the others, and has `pieceMs` when there are none left. */
  hasteMs: number
  /** More for the list, for each GiB of blob: the peer may have to read it all first. */
  listMsPerGib: number
  /** For a source that gave something and cannot be reached, or is busy. */
  comebackMs?: number
}
