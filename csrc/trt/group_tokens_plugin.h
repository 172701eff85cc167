// Token grouping as TensorRT plugins, over kernels/group_tokens.h. docs/plugins.md lists fields and tensors.
//
// edge_sdk::GroupTokens: G speech ids -> one backbone row.
//   inputs:  ids INT64 [M, G]; text FLOAT [M, width] if field `text` is 1; table [codes, width] as its dtype says,
//            table.scales if it is quantized
//   outputs: rows FLOAT [M, width]; bad_id INT32 [1]: 1 if an id lay outside the table (it adds nothing to its row)
// edge_sdk::GroupRows: the encoder's side, mean over G tower rows.
//   input: rows FLOAT [R, width];  output: FLOAT [ceil(R / G), width]
#pragma once

#include "trt/plugin.h"

namespace edge_sdk::trt {

Creator* GroupTokensCreator();
Creator* GroupRowsCreator();

}  // namespace edge_sdk::trt
