// Every variant of the filter-sparse kernel.
#define EXPLAINFIX_ALL_VARIANTS true
#define EXPLAINFIX_MODULE host_sparse_index_all
#include "sparse_index.cpp"
