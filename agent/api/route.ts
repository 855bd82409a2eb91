/**
 * What a line of the API's table of routes is: a method and a path, what is taken, what is answered, and who does it.
 */
import type { z } from 'zod'
import type { AgentApi } from './agent-api.ts'
import type { BlobReader } from './blob-reader.ts'
import { API_PREFIX, type FetchEvent } from './contract.ts'
import type { PinEvent } from './room-contract.ts'
import type { ForwardEvent } from './service-contract.ts'

/** A line of an answer that tells of work. */
export type WorkEvent = FetchEvent | PinEvent | ForwardEvent

/** One request, parsed. `signal` fires when the requester hangs up. */
export type Call<Input> = {
  input: Input
  /** The raw body, of routes that take bytes. */
  upload: AsyncIterable<Uint8Array>
  signal: AbortSignal
  /** Sends one line now, of routes that answer events. */
  emit: (event: WorkEvent) => void
}

type Shared<Input> = {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  path: string
  summary: string
  /** Of query, path parameters and JSON body together; where each comes from is in `takes`. */
  input: z.ZodType<Input>
  /** Where the input is: in the query and path, or in a JSON body. */
  takes: 'query' | 'json' | 'query and bytes'
  /** Of a JSON body that may be larger than others. */
  bodyBytesMax?: number
}

type JsonRoute<Input, Reply> = Shared<Input> & {
  answers: 'json'
  reply: z.ZodType<Reply>
  handle(api: AgentApi, call: Call<Input>): Reply | Promise<Reply>
}
type EventRoute<Input> = Shared<Input> & {
  answers: 'events'
  reply: z.ZodType<WorkEvent>
  handle(api: AgentApi, call: Call<Input>): Promise<void>
}
/** A line of JSON for each item, as long as there are some. */
type LinesRoute<Input, Line> = Shared<Input> & {
  answers: 'lines'
  /** Of one line. */
  reply: z.ZodType<Line>
  handle(api: AgentApi, call: Call<Input>): AsyncIterable<Line>
}
type BytesRoute<Input> = Shared<Input> & {
  answers: 'bytes'
  handle(api: AgentApi, call: Call<Input>): Promise<BlobReader>
}

export type Route =
  | JsonRoute<unknown, unknown>
  | EventRoute<unknown>
  | LinesRoute<unknown, unknown>
  | BytesRoute<unknown>

/** Types each line of the table on its own. */
export function route<Input, Reply>(
  line: JsonRoute<Input, Reply> | EventRoute<Input> | LinesRoute<Input, Reply> | BytesRoute<Input>,
): Route {
  return { ...line, path: `${API_PREFIX}/${line.path}` } as unknown as Route
}
