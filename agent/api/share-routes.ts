/** The endpoints about what is given out in a network: the part of the table in routes.ts that ShareApi does, with its schemas. */
import { z } from 'zod'
import { type Route, route } from './route.ts'
import type { ShareRequest, ShareView } from './share-contract.ts'

const REF_LENGTH_MAX = 128
const network = z.string().min(1).max(REF_LENGTH_MAX)
const share = z.enum(['published', 'store'])

const shareRequest: z.ZodType<ShareRequest> = z.strictObject({ network, share })
const shareView: z.ZodType<ShareView> = z.object({
  network: z.string(),
  id: z.string(),
  share,
  paths: z.int().min(0).nullable(),
  unseen: z.object({ why: z.string(), next: z.string() }).exactOptional(),
})

export const shareRoutes: readonly Route[] = [
  route({
    method: 'GET',
    path: 'networks/:network/share',
    summary: 'What this node gives out in a network, the open one included',
    takes: 'query',
    input: z.strictObject({ network }),
    answers: 'json',
    reply: shareView,
    handle: ({ sharing }, { input }) => sharing.share(input.network),
  }),
  route({
    method: 'PUT',
    path: 'networks/:network/share',
    summary: 'Give out what was published in a network, or all of the Nix store',
    takes: 'json',
    input: shareRequest,
    answers: 'json',
    reply: shareView,
    handle: ({ sharing }, { input }) => sharing.setShare(input),
  }),
]
