//! Looks: what CAMS shows about calls whose outcome is unknown. A look is a call of Flowgate's own:
//! it waits in the lane of its action as the client `flowgate`, so limits, pauses and reserves hold
//! for it, and it is signed with the account's current credentials.

mod ask;
