/** Two sides saying hello in memory, with somebody in between who sees, and may change, every message. */
import { Frames } from '../../../protocols/frame.ts'
import {
  type Admission,
  answer,
  type Door,
  type Greeting,
  greet,
  type TokenDesk,
} from '../../../protocols/hello/hello.ts'
import type { Pass } from '../../../protocols/membership/pass.ts'
import type { Token } from '../../../protocols/membership/token.ts'
import type { TestParty } from '../membership/people.ts'
import { duplexPair } from '../pieces/duplex.ts'

export type Said = { by: 'dialler' | 'listener'; bytes: Uint8Array }
/** What arrives instead of the message at this place; undefined ends the stream. */
type Between = (said: Said, at: number) => Uint8Array | undefined

export type Outcome = {
  dialler: Greeting | Error
  listener: Admission | Error
  said: Said[]
}

export type Conversation = {
  token?: Token
  wished?: string
  desk?: TokenDesk
  pass?: Pass
  door?: Door
  between?: Between
  /** Whom each side has on the other end, where it is not the other. */
  diallerSees?: Uint8Array
  listenerSees?: Uint8Array
  msMax?: number
}

const MS_MAX = 2_000

export async function converse(
  dialler: TestParty,
  listener: TestParty,
  {
    token,
    wished,
    desk,
    pass,
    door,
    between = ({ bytes }) => bytes,
    diallerSees,
    listenerSees,
    msMax = MS_MAX,
  }: Conversation = {},
): Promise<Outcome> {
  const signal = AbortSignal.timeout(msMax)
  const [near, diallerEnd] = duplexPair()
  const [far, listenerEnd] = duplexPair()
  const [left, right] = [new Frames(diallerEnd), new Frames(listenerEnd)]
  const said: Said[] = []
  const pump = async (from: Frames, to: Frames, by: Said['by']): Promise<void> => {
    try {
      for (;;) {
        const bytes = await from.read(signal)
        const passed = bytes && between({ by, bytes }, said.length)
        if (bytes !== undefined) said.push({ by, bytes })
        if (passed === undefined) return await to.close()
        await to.write(passed, signal)
      }
    } catch (error) {
      to.abort(error as Error)
    }
  }
  const pumps = [pump(left, right, 'dialler'), pump(right, left, 'listener')]
  const attempt = async <T>(frames: Frames, hello: (frames: Frames) => Promise<T>): Promise<T | Error> => {
    try {
      return await hello(frames)
    } catch (error) {
      // As the gate does with the connection.
      frames.abort(error as Error)
      return error as Error
    }
  }
  const toListener = { party: dialler, peer: diallerSees ?? listener.key.publicKey, signal, ...(token && { token }) }
  const toDialler = { party: listener, peer: listenerSees ?? dialler.key.publicKey, signal, desk, door }
  const [one, other] = await Promise.all([
    attempt(new Frames(near), (frames) => greet({ ...toListener, wished, pass, frames })),
    attempt(new Frames(far), (frames) => answer({ ...toDialler, frames })),
  ])
  if ('afterwards' in one) await one.afterwards.catch(() => undefined)
  left.abort(new Error('over'))
  right.abort(new Error('over'))
  await Promise.allSettled(pumps)
  return { dialler: one, listener: other, said }
}

/** What one side has of the other: the names of its memberships, `open`, or why there is nothing. */
export function view(side: Greeting | Admission | Error): string {
  if (side instanceof Error) return `refused: ${side.message}`
  return [...side.members.map(({ name }) => name), ...(side.open ? ['open'] : [])].join(' ')
}
