// bitwright: a packed net as gates
// x[i]: input i, 1 where it is at least 0.5
// y: the class
// count_C: the sum of class C
module nor_net (
  input [2:0] x,
  output [1:0] y,
  output [0:0] count_0,
  output [1:0] count_1,
  output [0:0] count_2
);
  // fc1
  wire n4 = ~(x[0] | x[1]);
  // fc2
  wire n5 = x[2] ^ n4;
  wire n6 = ~x[2] & n4;
  assign y[0] = ~x[2];
  assign y[1] = 1'b0;
  assign count_0[0] = n4;
  assign count_1[0] = ~n5;
  assign count_1[1] = n6;
  assign count_2[0] = 1'b0;
endmodule
